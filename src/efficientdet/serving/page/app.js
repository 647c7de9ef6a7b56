// The page: where images come from, what is shown of them, and what can be downloaded. What detects is `source.js`: this
// server, or, in the live demo of the documentation, the browser itself.

import { CameraError, openCamera } from "./camera.js";
import { paint } from "./draw.js";
import * as source from "./source.js";

const at = (id) => document.getElementById(id);
const canvas = at("canvas");

// What is shown: the last image, and what was found in it.
const shown = { name: "", image: null, size: null, detections: null, hidden: new Set(), chosen: null, note: "" };
let models = [];
let model = null;
let starting = null; // until the models are known
let lastFile = null;
let running = null; // AbortController of what is being detected: a file, or the camera's frames

// ---- Detecting ----

/** Show a file, and what is found in it. */
async function showFile(file) {
  if (source.openModel && /\.onnx$/i.test(file.name)) return openModel(file);
  const control = begin();
  lastFile = file;
  say(model ? "Detecting…" : "Loading the model…");
  try {
    if (!(await isReady(control))) return;
    const image = await createImageBitmap(file).catch(() => null); // the server reads formats that browsers do not
    control.signal.throwIfAborted();
    if (image) show(file.name, image, [image.height, image.width], null);
    const found = await source.detect({ file }, model, control.signal);
    show(file.name, image, found.image_size, found.detections, found.note);
    tell(image ? "" : "This browser cannot show the image; its boxes are right all the same. ");
  } catch (error) {
    fail(error, control, file);
  } finally {
    end(control);
  }
}

/** Show what is found in the camera's frames, one after the other, as fast as they can be detected in. */
async function runCamera() {
  const control = begin();
  let camera = null;
  try {
    if (!(await isReady(control))) return;
    say("Opening the camera…");
    camera = await openCamera();
    at("camera").setAttribute("aria-pressed", "true");
    say("The camera is live.");
    while (!control.signal.aborted) {
      const frame = await camera.frame();
      const used = model;
      try {
        const found = await source.detect(frame, used, control.signal);
        if (used === model) show("camera.jpg", frame.bitmap, found.image_size, found.detections);
      } catch (error) {
        if (error.status !== 429) throw error;
        await new Promise((done) => setTimeout(done, 1000 * (error.retryAfter || 1)));
      }
    }
  } catch (error) {
    fail(error, control);
  } finally {
    camera?.close();
    at("camera").setAttribute("aria-pressed", "false");
    end(control);
  }
}

/** Wait for the models; whether there is one. What failed before is tried once more. */
async function isReady(control) {
  await starting;
  if (!model) await (starting = start());
  control.signal.throwIfAborted();
  return model !== null;
}

/** Stop what is being detected, and make ready for what comes next. */
function begin() {
  running?.abort();
  running = new AbortController();
  at("error").hidden = at("retry").hidden = true;
  at("cancel").hidden = false;
  at("stage").classList.add("busy");
  at("stage").setAttribute("aria-busy", "true");
  return running;
}

function end(control) {
  if (running !== control) return;
  running = null;
  const hadFocus = document.activeElement === at("cancel");
  at("cancel").hidden = true;
  if (hadFocus) at(at("retry").hidden ? "results" : "retry").focus();
  at("stage").classList.remove("busy");
  at("stage").removeAttribute("aria-busy");
}

/** Show why something failed; a `file` can be tried again. */
function fail(error, control, file = null) {
  if (control.signal.aborted) {
    if (running === control) say("Stopped.");
    return;
  }
  say("");
  if (!(error instanceof source.SourceError || error instanceof CameraError)) console.error(error);
  at("error").textContent = error.message.replace(/^<\d+ bytes>/, file?.name); // which the server does not know
  at("error").hidden = false;
  at("retry").hidden = !file || error.status === 401;
  at("key-form").hidden = error.status !== 401;
}

// ---- Showing ----

let telling = 0;

function say(text) {
  clearTimeout(telling);
  at("status").textContent = text;
}

/** The objects that the slider and the classes let through. */
function visible() {
  const least = at("threshold").value / 100;
  return (shown.detections ?? []).filter((one) => one.score >= least && !shown.hidden.has(one.class_name));
}

function counted(detections) {
  const counts = new Map();
  for (const one of detections) counts.set(one.class_name, (counts.get(one.class_name) ?? 0) + 1);
  return counts;
}

function inWords(detections) {
  const parts = [...counted(detections)].map(([name, count]) => `${count} × ${name}`);
  return detections.length ? parts.join(", ") : "No objects with this score";
}

/** Say what is shown; a moment later, so that a moving slider is not read out at every step. */
function tell(before = "") {
  clearTimeout(telling);
  if (shown.detections) telling = setTimeout(() => say(`${before}${inWords(visible())}. ${shown.note}`.trim()), 150);
}

/** Show an image; `detections` is null while they are not known. */
function show(name, image, size, detections, note = "") {
  if (shown.image !== image) shown.image?.close();
  Object.assign(shown, { name, image, size, detections, note, chosen: null });
  canvas.hidden = false;
  at("hint").hidden = true;
  at("stage").classList.add("full");
  at("save-json").disabled = at("save-image").disabled = detections === null;
  listClasses();
  render();
}

function render() {
  const found = visible();
  at("threshold-value").textContent = `${at("threshold").value}%`;
  if (shown.size === null) return;
  if (!found.includes(shown.chosen)) shown.chosen = null;
  repaint(found);
  canvas.setAttribute("aria-label", shown.detections ? `${shown.name}: ${inWords(found)}` : shown.name);
  at("table-scroll").hidden = found.length === 0;
  at("nothing").hidden = found.length > 0;
  const advice = "No objects with this score. Move the slider to the left to see weaker ones.";
  at("nothing").textContent = shown.detections ? advice : "";
  at("rows").replaceChildren(...found.map(row));
}

function repaint(found = visible()) {
  paint(canvas, shown.image, shown.size, found, model.class_colors, shown.chosen);
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function swatch(label) {
  const made = element("span", { className: "swatch" });
  made.style.background = model.class_colors[label];
  return made;
}

function row(detection) {
  const [left, top, right, bottom] = detection.box_xyxy;
  const button = element("button", { type: "button", title: "Highlight this box" });
  button.append(swatch(detection.label), detection.class_name);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    shown.chosen = shown.chosen === detection ? null : detection;
    for (const other of at("rows").querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(shown.chosen === detection));
    repaint();
  });
  const numbers = [left, top, right - left, bottom - top].map((side) => Math.round(side));
  const cells = [`${Math.round(detection.score * 100)}%`, ...numbers].map((text) => element("td", {}, String(text)));
  return element("tr", {}, element("td", {}, button), ...cells);
}

/** A checkbox for each class that was found; those that stay keep their state and the focus. */
function listClasses() {
  const names = [...counted(shown.detections ?? []).keys()].sort();
  const list = at("class-list");
  if (JSON.stringify(names) !== list.dataset.names) {
    list.dataset.names = JSON.stringify(names);
    list.replaceChildren(...names.map((name) => {
      const box = element("input", { type: "checkbox", checked: !shown.hidden.has(name) });
      box.addEventListener("change", () => {
        shown.hidden[box.checked ? "delete" : "add"](name);
        render();
        tell();
      });
      return element("label", {}, box, swatch(model.class_names.indexOf(name)), name);
    }));
  }
  at("classes").hidden = names.length === 0;
}

// ---- Downloading ----

function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => shown.name.replace(/\.[^.]*$/, "") || "image";

at("save-json").addEventListener("click", () => {
  const content = { model: model.name, source: shown.name, image_size: shown.size, detections: visible() };
  download(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }), `${stem()}.json`);
});

at("save-image").addEventListener("click", () => {
  canvas.toBlob((blob) => download(blob, `${stem()}-annotated.png`), "image/png");
});

// ---- Where images come from ----

for (const id of ["file", "photo", "own-model"]) {
  at(id)?.addEventListener("change", () => {
    const [file] = at(id).files;
    if (file) showFile(file);
    at(id).value = ""; // so that the same file can be chosen again
  });
}

/** The first file of a drop or a paste. */
function take(transfer) {
  const file = [...(transfer?.files ?? [])][0];
  if (file) showFile(file);
  return Boolean(file);
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("stage").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("stage").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("stage").classList.remove("over");
  if (!take(event.dataTransfer)) say("That was no file. Drop an image file.");
});
document.addEventListener("paste", (event) => {
  if (take(event.clipboardData)) event.preventDefault();
});

at("camera").addEventListener("click", () => {
  if (at("camera").getAttribute("aria-pressed") === "true") running?.abort();
  else runCamera();
});
at("cancel").addEventListener("click", () => running?.abort());
at("retry").addEventListener("click", () => showFile(lastFile));
at("threshold").addEventListener("input", () => {
  render();
  tell();
});

// ---- Models, and the server's key ----

function chooseModel(name) {
  model = models.find((one) => one.name === name);
  at("threshold").value = Math.round(100 * Math.min(...[model.settings.score_threshold].flat()));
  shown.hidden.clear();
  delete at("class-list").dataset.names;
  const classes = model.class_names.slice(0, 6).join(", ");
  const more = model.class_names.length - 6;
  at("about").textContent = `Finds ${classes}${more > 0 ? ` and ${more} more classes` : ""}. ${model.note ?? ""}`.trim();
  if (shown.size) show(shown.name, shown.image, shown.size, null); // what the other model found has other classes
  else render();
}

async function start() {
  try {
    models = await source.listModels();
  } catch (error) {
    fail(error, new AbortController());
    at("about").textContent = "";
    return;
  }
  at("error").hidden = at("key-form").hidden = true;
  offerModels(models[0].name);
}

function offerModels(chosen) {
  at("model").replaceChildren(...models.map(({ name }) => element("option", { value: name }, name)));
  at("model-choice").hidden = models.length < 2;
  at("model").value = chosen;
  chooseModel(chosen);
}

/** Use an exported file of the reader's. */
async function openModel(file) {
  const control = begin();
  say(`Loading ${file.name}…`);
  try {
    if (!(await isReady(control))) return;
    const opened = await source.openModel(file);
    control.signal.throwIfAborted();
    models = [...models.filter(({ name }) => name !== opened.name), opened];
    offerModels(opened.name);
    say(`${file.name} is loaded.`);
    if (lastFile) showFile(lastFile);
  } catch (error) {
    fail(error, control);
  } finally {
    end(control);
  }
}

at("model").addEventListener("change", () => {
  const isLive = at("camera").getAttribute("aria-pressed") === "true";
  chooseModel(at("model").value);
  if (lastFile && !isLive) showFile(lastFile);
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  source.useKey(at("key").value);
  starting = start();
});

starting = start();
