// A folder or a zip is dragged onto the form, or chosen: a folder is packed here, without compression, and sent like a zip.
"use strict";
(() => {
  const form = document.querySelector("form[data-upload]");
  if (!form) return;
  const zone = form.querySelector(".drop"), bar = form.querySelector("progress"), told = form.querySelector("output");
  const file = form.querySelector("input[name=file]"), folder = form.querySelector("input[data-folder]");
  const words = form.dataset;
  folder.closest("p").hidden = false;
  file.required = false;
  let chosen = null;

  const table = new Uint32Array(256).map((_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  });
  const sum = (bytes) => {
    let c = ~0;
    for (let i = 0; i < bytes.length; i++) c = table[(c ^ bytes[i]) & 255] ^ (c >>> 8);
    return ~c >>> 0;
  };

  // [{path, file}] -> a Blob that is a zip; files are read one by one for their checksum and not held
  async function pack(entries, report) {
    const total = entries.reduce((n, e) => n + e.file.size + 200, 0);
    if (entries.length > 65000 || total > 4e9) throw new Error(words.large);
    const parts = [], central = [];
    let offset = 0;
    const header = (size, fill) => { const view = new DataView(new ArrayBuffer(size)); fill(view); return view.buffer; };
    for (const [i, entry] of entries.entries()) {
      report(i / entries.length);
      const name = new TextEncoder().encode(entry.path), size = entry.file.size;
      const crc = sum(new Uint8Array(await entry.file.arrayBuffer()));
      const common = (v, at) => {
        v.setUint16(at, 20, true); v.setUint16(at + 2, 0x0800, true); v.setUint16(at + 8, 0x5821, true);
        v.setUint32(at + 10, crc, true); v.setUint32(at + 14, size, true); v.setUint32(at + 18, size, true);
        v.setUint16(at + 22, name.length, true);
      };
      parts.push(header(30, (v) => { v.setUint32(0, 0x04034b50, true); common(v, 4); }), name, entry.file);
      central.push(header(46, (v) => {
        v.setUint32(0, 0x02014b50, true); v.setUint16(4, 20, true); common(v, 6); v.setUint32(42, offset, true);
      }), name);
      offset += 30 + name.length + size;
    }
    const length = central.reduce((n, p) => n + p.byteLength, 0);
    const end = header(22, (v) => {
      v.setUint32(0, 0x06054b50, true); v.setUint16(8, entries.length, true); v.setUint16(10, entries.length, true);
      v.setUint32(12, length, true); v.setUint32(16, offset, true);
    });
    return new Blob([...parts, ...central, end], { type: "application/zip" });
  }

  async function walk(entry, prefix, found) {
    if (entry.isFile) {
      found.push({ path: prefix + entry.name, file: await new Promise((ok, no) => entry.file(ok, no)) });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((ok, no) => reader.readEntries(ok, no));
      if (!some.length) return;
      for (const one of some) await walk(one, `${prefix}${entry.name}/`, found);
    }
  }

  const choose = (entries) => {
    chosen = entries;
    const bytes = entries.reduce((n, e) => n + e.file.size, 0);
    told.value = words.chosen.replace("N", entries.length).replace("MB", `${(bytes / 1e6).toFixed(1)} MB`);
  };
  file.addEventListener("change", () => choose([...file.files].map((f) => ({ path: f.name, file: f }))));
  folder.addEventListener("change", () => choose([...folder.files].map((f) => ({ path: f.webkitRelativePath, file: f }))));
  for (const name of ["dragenter", "dragover"]) zone.addEventListener(name, (e) => { e.preventDefault(); zone.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) zone.addEventListener(name, () => zone.classList.remove("over"));
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean), found = [];
    for (const entry of entries) await walk(entry, "", found);
    if (found.length) choose(found);
  });

  const refused = (text) => { told.value = text; told.className = "problem"; bar.hidden = true; form.querySelector("button.main").disabled = false; };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!chosen) { refused(words.nothing); return; }
    form.querySelector("button.main").disabled = true;
    told.className = "";
    bar.hidden = false;
    try {
      const zipped = chosen.length === 1 && /\.zip$/i.test(chosen[0].path);
      told.value = zipped ? words.sending : words.packing;
      const body = zipped ? chosen[0].file : await pack(chosen, (share) => { bar.value = share / 4; });
      const data = new FormData(form);
      data.delete("file");
      data.append("file", body, "data.zip"); // last, so that everything else is known before it comes
      const request = new XMLHttpRequest();
      request.open("POST", form.action);
      told.value = words.sending;
      request.upload.addEventListener("progress", (e) => { if (e.lengthComputable) bar.value = 0.25 + 0.75 * e.loaded / e.total; });
      request.addEventListener("error", () => refused(words.broken));
      request.addEventListener("load", () => {
        if (request.status < 400) { location.assign(request.responseURL); return; }
        const page = new DOMParser().parseFromString(request.responseText, "text/html");
        refused(page.querySelector(".problem")?.textContent || words.broken);
      });
      request.send(data);
    } catch (error) {
      refused(error.message);
    }
  });
})();
