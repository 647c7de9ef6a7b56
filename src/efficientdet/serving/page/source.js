// The detector behind the page: this server's API. The live demo of the documentation has a `source.js` of its own.

// Detections below this are not asked for; the slider chooses among those above.
export const LOWEST_SCORE = 0.05;

let key = "";

/** Send this key with every request from now on. */
export function useKey(text) {
  key = text;
}

/** What the server answered instead of what was asked for: `status`, and seconds until it may be asked again. */
export class SourceError extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new SourceError("The server cannot be reached. Check the connection, then try again.", 0);
  }
  const content = await answer.json().catch(() => ({}));
  if (answer.ok) return content;
  const reason = content.error?.message ?? `the server answered ${answer.status}`;
  throw new SourceError(reason, answer.status, Number(answer.headers.get("Retry-After")) || 0);
}

/** The models, each with `name`, `class_names`, `class_colors`, `settings` and `lowest_threshold`. */
export async function listModels() {
  return (await ask("v1/models")).models;
}

/**
 * What a model of `listModels` finds in an image: `image_size` as [height, width], and `detections`.
 *
 * @param image a `file`; or a `bitmap`, and `encode()` to make a file of it
 */
export async function detect(image, model, signal) {
  const blob = image.file ?? (await image.encode());
  const query = new URLSearchParams({
    model: model.name,
    score_threshold: Math.max(LOWEST_SCORE, model.lowest_threshold),
  });
  const headers = { "Content-Type": blob.type.startsWith("image/") ? blob.type : "application/octet-stream" };
  const answer = await ask(`v1/detect?${query}`, { method: "POST", body: blob, headers, signal });
  return answer.images[0];
}
