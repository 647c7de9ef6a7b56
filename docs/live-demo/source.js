// The detector behind the page: the network, in a worker of this browser. The server's page has another `source.js`.

/** Why something failed, for people. */
export class SourceError extends Error {}

const DEVICES = ["webgpu", "wasm"];
const asked = new URLSearchParams(location.search).get("device"); // such as ?device=wasm
const devices = DEVICES.includes(asked) ? [asked] : DEVICES;

let site = null; // what the site's build wrote: model, colors, default threshold
let worker = null;
let waiting = null; // for the worker's answer
let last = Promise.resolve();

function startWorker() {
  worker?.terminate();
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => ("error" in data ? waiting.reject(new SourceError(data.error)) : waiting.resolve(data.answer));
  worker.onerror = (event) => {
    event.preventDefault();
    waiting?.reject(new SourceError(`The network cannot run in this browser (${event.message || "its worker does not start"}).`));
  };
}

/** Have the worker do something, one task after the other. */
function ask(task, signal = null) {
  const answer = last.then(() => {
    signal?.throwIfAborted();
    return new Promise((resolve, reject) => {
      waiting = { resolve, reject };
      worker.postMessage(task);
    });
  });
  last = answer.catch(() => null);
  if (!signal) return answer;
  const done = new AbortController();
  const stopped = new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { signal: done.signal });
  });
  return Promise.race([answer, stopped]).finally(() => done.abort());
}

async function open(name, from) {
  const { metadata, device, threads } = await ask({ task: "open", name, devices, ...from });
  const lowest = Math.max(...[metadata.postprocess.score_threshold].flat());
  const usual = [metadata.checkpoint.postprocess.score_threshold ?? site.score_threshold].flat();
  const runs = device === "webgpu" ? "the GPU (WebGPU)" : `${threads === 1 ? "one thread" : `${threads} threads`} (WebAssembly)`;
  return {
    name,
    class_names: metadata.class_names,
    class_colors: metadata.class_names.map((_, label) => site.colors[label % site.colors.length]),
    settings: { score_threshold: Math.max(lowest, Math.min(...usual)) },
    lowest_threshold: lowest,
    note: `Runs in this browser, on ${runs}.`,
  };
}

/** The model that the site brings along, in the form of the server's `listModels`. */
export async function listModels() {
  if (typeof WebAssembly !== "object") {
    throw new SourceError("This browser has no WebAssembly, or it is switched off. Use another browser, or allow it for this page.");
  }
  const answer = await fetch("site.json").catch(() => null);
  if (!answer?.ok) throw new SourceError("The page cannot be loaded whole. Check the connection, then load it again.");
  site = await answer.json();
  if (site.missing) throw new SourceError(site.missing);
  startWorker();
  return [await open(site.model, { url: new URL(`${site.model}.onnx`, import.meta.url).href })];
}

/** Open an exported file of the reader's. */
export async function openModel(file) {
  return open(file.name.replace(/\.onnx$/i, ""), { file });
}

/** What a model finds in an image, `{ file }` or `{ bitmap }`, in the form of the server's answer. */
export async function detect({ file, bitmap }, model, signal) {
  const found = await ask({ task: "detect", name: model.name, image: file ?? bitmap }, signal);
  const detections = found.boxes.map((box_xyxy, at) => {
    const label = found.labels[at];
    return { box_xyxy, score: found.scores[at], label, class_name: model.class_names[label] };
  });
  return { image_size: found.imageSize, detections, note: `${Math.round(found.milliseconds)} ms.` };
}
