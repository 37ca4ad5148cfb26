-- Run once, when the volume is new: Label Studio's database beside ours.
CREATE DATABASE label_studio;
