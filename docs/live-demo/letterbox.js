// The resize and padding of src/efficientdet/images/letterbox.py: Pillow's antialiased bilinear filter, to the same bytes.
// Only images over twice as high as wide differ, by at most 1: there Pillow 13 resizes the height first.

// Bits after the point of a weight, as in Pillow's Resample.c: all sums are whole numbers of 32 bits.
const PRECISION = 22;
const HALF = 1 << (PRECISION - 1);

/** Scale an image to fit `size`: the factor, and its [height, width] then. */
export function fit([height, width], size) {
  const scale = Math.min(size[0] / height, size[1] / width);
  const scaled = [height * scale, width * scale].map((side) => Math.max(Math.trunc(side), 1));
  return [Math.min(scaled[0], size[0]), Math.min(scaled[1], size[1])];
}

/** Of each new pixel along a side: the first old one that it is made of, how many there are, and the weight of each. */
function filter(length, newLength) {
  const scale = length / newLength;
  const support = Math.max(scale, 1);
  const taps = 2 * Math.ceil(support) + 1;
  const starts = new Int32Array(newLength);
  const counts = new Int32Array(newLength);
  const weights = new Int32Array(newLength * taps);
  for (let place = 0; place < newLength; place++) {
    const center = (place + 0.5) * scale;
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), length);
    const shares = [];
    let total = 0;
    for (let old = start; old < end; old++) {
      const share = Math.max(1 - Math.abs((old - center + 0.5) * (1 / support)), 0);
      shares.push(share);
      total += share;
    }
    shares.forEach((share, tap) => {
      weights[place * taps + tap] = Math.trunc(0.5 + (share / total) * (1 << PRECISION));
    });
    starts[place] = start;
    counts[place] = end - start;
  }
  return { starts, counts, weights, taps };
}

/** Resize rows of pixels to another width: RGBA to RGB, written to `target` from row `top` on. */
function resizeRows(pixels, width, count, target, newWidth, top, { starts, counts, weights, taps }) {
  for (let row = 0; row < count; row++) {
    for (let x = 0; x < newWidth; x++) {
      let red = HALF, green = HALF, blue = HALF;
      let from = 4 * (row * width + starts[x]);
      for (let tap = x * taps, end = tap + counts[x]; tap < end; tap++, from += 4) {
        const weight = weights[tap];
        red += pixels[from] * weight;
        green += pixels[from + 1] * weight;
        blue += pixels[from + 2] * weight;
      }
      const to = 3 * ((top + row) * newWidth + x);
      target[to] = red >> PRECISION;
      target[to + 1] = green >> PRECISION;
      target[to + 2] = blue >> PRECISION;
    }
  }
}

/** Resize to another height, onto the top left of a canvas of RGB. */
function resizeColumns(pixels, width, canvas, canvasWidth, newHeight, { starts, counts, weights, taps }) {
  const length = 3 * width;
  const sums = new Int32Array(length);
  for (let y = 0; y < newHeight; y++) {
    sums.fill(HALF);
    for (let tap = 0; tap < counts[y]; tap++) {
      const weight = weights[y * taps + tap];
      const from = (starts[y] + tap) * length;
      for (let i = 0; i < length; i++) sums[i] += pixels[from + i] * weight;
    }
    const to = 3 * y * canvasWidth;
    for (let i = 0; i < length; i++) canvas[to + i] = sums[i] >> PRECISION;
  }
}

/**
 * Letterbox an image for an end-to-end file: (height, width, 3) bytes of RGB, the image at the top left.
 *
 * @param image `height`, `width`, and `strips()`, which yields [top, number of rows, RGBA bytes] from top to bottom
 * @param size [height, width] of the network's input
 */
export function letterbox(image, size) {
  const [height, width] = fit([image.height, image.width], size);
  const across = filter(image.width, width);
  const narrow = new Uint8Array(3 * image.height * width);
  for (const [top, count, pixels] of image.strips()) {
    resizeRows(pixels, image.width, count, narrow, width, top, across);
  }
  const canvas = new Uint8Array(3 * size[0] * size[1]);
  resizeColumns(narrow, width, canvas, size[1], height, filter(image.height, height));
  return canvas;
}
