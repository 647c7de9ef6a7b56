// Runs the network in onnxruntime-web, away from the page's own thread.

import { letterbox } from "./letterbox.js";
import { readMetadata } from "./metadata.js";

// Pixels that are read from a canvas at a time: phones give none of larger ones.
const STRIP = 1 << 22;
const MOST_THREADS = 4;

const sessions = new Map(); // by the model's name: { session, size }
const runtimes = {}; // by device

/** The runtime for `webgpu` or `wasm`. Browsers lend threads to pages alone that are isolated from others. */
async function load(device) {
  if (runtimes[device]) return runtimes[device];
  const runtime = await import(`./runtime/ort.${device}.min.mjs`);
  runtime.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;
  runtime.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
  return (runtimes[device] = runtime);
}

/** Open a file's bytes on the first device on which they run. */
async function openOn(devices, name, bytes, size) {
  for (const device of devices) {
    try {
      const runtime = await load(device);
      const options = { executionProviders: [device], logSeverityLevel: 3 };
      const opened = { session: await runtime.InferenceSession.create(bytes, options), runtime, size };
      await run(opened, new Uint8Array(3 * size[0] * size[1]), size); // the first run is slow, or fails
      return [device, opened];
    } catch (error) {
      if (device === devices.at(-1)) throw new Error(`${name}: is damaged, or cannot run in this browser (${error.message}).`);
      console.warn(`${device} cannot run the network: ${error.message}`);
    }
  }
}

/** Open an ONNX file; returns its metadata, and what runs it. */
async function open({ name, url, file, devices }) {
  const shown = file?.name ?? name;
  const source = file ?? (await fetch(url).catch(() => null));
  if (!source || source.ok === false) throw new Error(`${shown} cannot be loaded. Check the connection, then load the page again.`);
  const bytes = new Uint8Array(await source.arrayBuffer());
  const metadata = readMetadata(bytes);
  const advice = "Export one with: efficientdet export WEIGHTS --end-to-end --out model.onnx";
  if (!metadata) throw new Error(`${shown}: is no ONNX file of efficientdet. ${advice}`);
  if (!metadata.end_to_end) throw new Error(`${shown}: decoding and NMS are not in the file. ${advice}`);
  const usable = [];
  for (const device of devices) {
    if (device !== "webgpu" || (await navigator.gpu?.requestAdapter().catch(() => null))) usable.push(device);
  }
  if (!usable.length) throw new Error("This browser has no WebGPU. Load the page without ?device=webgpu.");
  const [device, opened] = await openOn(usable, shown, bytes, metadata.image_size);
  const before = sessions.get(name);
  sessions.set(name, opened);
  await before?.session.release();
  return { metadata, device, threads: opened.runtime.env.wasm.numThreads };
}

async function run({ session, runtime, size }, canvas, imageSize) {
  const outputs = await session.run({
    images: new runtime.Tensor("uint8", canvas, [1, ...size, 3]),
    image_sizes: new runtime.Tensor("int64", BigInt64Array.from(imageSize, BigInt), [1, 2]),
  });
  const values = {};
  for (const [name, tensor] of Object.entries(outputs)) {
    values[name] = tensor.data;
  }
  return values;
}

/** An image's pixels, a strip of rows at a time, transparency laid over white. */
function readable(bitmap) {
  const { width, height } = bitmap;
  const rows = Math.min(Math.max(1, Math.floor(STRIP / width)), height);
  const pen = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true });
  function* strips() {
    for (let top = 0; top < height; top += rows) {
      const count = Math.min(rows, height - top);
      pen.fillStyle = "#ffffff";
      pen.fillRect(0, 0, width, rows);
      pen.drawImage(bitmap, 0, -top);
      yield [top, count, pen.getImageData(0, 0, width, count).data];
    }
  }
  return { width, height, strips };
}

/** What a model finds in an image, a file or a bitmap: arrays, best first. */
async function detect({ name, image }) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = image instanceof Blob ? await createImageBitmap(image, options).catch(() => null) : image;
  if (!bitmap) {
    const advice = "Convert it to JPEG or PNG.";
    throw new Error(`${image.name}: not an image, damaged, or of a format that this browser does not read. ${advice}`);
  }
  const start = performance.now();
  const opened = sessions.get(name);
  const imageSize = [bitmap.height, bitmap.width];
  const canvas = letterbox(readable(bitmap), opened.size);
  bitmap.close();
  const found = await run(opened, canvas, imageSize);
  const count = Number(found.counts[0]);
  return {
    imageSize,
    boxes: Array.from({ length: count }, (_, at) => [...found.boxes_xyxy.subarray(4 * at, 4 * at + 4)]),
    scores: [...found.scores.subarray(0, count)],
    labels: [...found.labels.subarray(0, count)].map(Number),
    milliseconds: performance.now() - start,
  };
}

const tasks = { open, detect };

self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ answer: await tasks[data.task](data) });
  } catch (error) {
    self.postMessage({ error: error.message || String(error) });
  }
};
