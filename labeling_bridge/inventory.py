"""What stands in Label Studio: `python -m labeling_bridge.inventory MODEL` prints the sample id of every task as JSON.

For checks from outside the bridge (the demo's "every task exactly once"); reads Label Studio, writes nothing.

Errors: StudioError when Label Studio does not answer or the model has no project.
"""

from __future__ import annotations

import sys

import msgspec

from labeling_bridge.project import project_description
from labeling_bridge.studio import Studio
from sutdol.context import open_context
from sutdol.errors import StudioError
from sutdol.settings import load


def sample_ids(studio: Studio, model: str) -> list[str]:
    """One entry for each task of the model's project, so a sample with two tasks stands there twice.

    Raises:
        StudioError: there is no project of this model.
    """
    project_id = studio.find_project(project_description(model))
    if project_id is None:
        raise StudioError(f"Label Studio has no project of the model {model!r}")
    return [task.sample_id for task in studio.listing(project_id)]


def main() -> None:
    """Entry point; the model is the only argument."""
    with Studio.open(open_context(load())) as studio:
        print(msgspec.json.encode(sample_ids(studio, sys.argv[1])).decode())


if __name__ == "__main__":
    main()
