// An image with boxes and labels on a canvas.

// Some phones draw nothing on a larger canvas.
const MOST_PIXELS = 16_000_000;

/** Near-black or white, whichever contrasts more with a color such as #dc144c. */
function inkOn(color) {
  const [red, green, blue] = [1, 3, 5].map((at) => {
    const share = parseInt(color.slice(at, at + 2), 16) / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) ? "#121212" : "#ffffff";
}

/**
 * Draw an image and its boxes.
 *
 * @param canvas takes the image's size, or less where that is too large for a canvas
 * @param image a bitmap; null where the browser cannot show it: the boxes then stand on plain ground
 * @param size [height, width] that the boxes are in pixels of
 * @param detections best first
 * @param colors by label
 * @param chosen the detection to stress; null for none
 */
export function paint(canvas, image, size, detections, colors, chosen) {
  const [height, width] = size;
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (height * width)));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#808080";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (image) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const side = Math.min(Math.sqrt(canvas.width * canvas.height), 3 * Math.min(canvas.width, canvas.height));
  const line = Math.max(1.5, side / 220);
  pen.font = `600 ${Math.max(11, side / 36)}px system-ui, sans-serif`;
  const weakestFirst = [...detections].reverse().sort((one, other) => (one === chosen) - (other === chosen));
  for (const detection of weakestFirst) {
    pen.globalAlpha = chosen && detection !== chosen ? 0.35 : 1;
    drawBox(pen, detection, colors[detection.label], scale, detection === chosen ? 2 * line : line);
  }
  pen.globalAlpha = 1;
}

function drawBox(pen, detection, color, scale, line) {
  const [left, top, right, bottom] = detection.box_xyxy.map((side) => side * scale);
  pen.lineWidth = line * 1.8; // a dark edge, so that the line shows on a background of its own color
  pen.strokeStyle = "rgb(0 0 0 / 45%)";
  pen.strokeRect(left, top, right - left, bottom - top);
  pen.lineWidth = line;
  pen.strokeStyle = color;
  pen.strokeRect(left, top, right - left, bottom - top);
  const text = `${detection.class_name.slice(0, 40)} ${Math.round(detection.score * 100)}%`;
  const points = parseFloat(pen.font.match(/([\d.]+)px/)[1]);
  const across = Math.min(pen.measureText(text).width + points * 0.6, pen.canvas.width);
  const down = points * 1.35;
  const x = Math.max(0, Math.min(left - line / 2, pen.canvas.width - across));
  const y = top >= down ? top - down : top;
  pen.fillStyle = color;
  pen.fillRect(x, y, across, down);
  pen.fillStyle = inkOn(color);
  pen.textBaseline = "middle";
  pen.fillText(text, x + points * 0.3, y + down / 2, across - points * 0.3);
}
