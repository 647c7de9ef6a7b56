// The camera, one frame at a time.

// Longer sides are scaled down: the network's input is smaller still.
const LONGEST_SIDE = 1280;

/** Why the camera does not open, for people. */
export class CameraError extends Error {}

const REASONS = {
  NotAllowedError: "The camera is not allowed. Allow it for this page in the browser, then try again.",
  NotFoundError: "No camera was found. Connect one, then try again.",
  NotReadableError: "The camera is used by another program. Close that, then try again.",
};

/** Open the camera, at the back of a phone; returns `frame()`, a bitmap and `encode()`, its JPEG; and `close()`. */
export async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new CameraError("Browsers give the camera to pages from https:// or localhost only.");
  }
  let stream;
  try {
    const video = { facingMode: { ideal: "environment" }, width: { ideal: LONGEST_SIDE } };
    stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
  } catch (error) {
    throw new CameraError(REASONS[error.name] ?? `The camera cannot be opened (${error.message}).`);
  }
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = stream;
  await video.play();
  const canvas = document.createElement("canvas");

  async function frame() {
    const scale = Math.min(1, LONGEST_SIDE / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = Math.round(video.videoWidth * scale);
    canvas.height = Math.round(video.videoHeight * scale);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    const bitmap = await createImageBitmap(canvas);
    return { bitmap, encode: () => new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.85)) };
  }

  function close() {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  }

  return { frame, close };
}
