// A picture of a stored question, or a calm box that says why there is none.

import { get, pictureUrl } from "./api.js";
import { el } from "./dom.js";

/** shown: whether pictures are served at all. */
export function picture(id, size, { alt, shown }) {
  const frame = el("span", { class: `picture ${size}` });
  if (shown === false) return missing(frame, "pictures are shown when the dashboard is started with --image-root");
  const image = el("img", { alt, loading: size === "thumbnail" ? "lazy" : "eager", decoding: "async" });
  image.addEventListener("error", () => why(frame, id, size));
  image.src = pictureUrl(id, size);
  frame.append(image);
  return frame;
}

async function why(frame, id, size) {
  try {
    await get("/api/picture", { id, size });
    missing(frame, "the picture cannot be shown");
  } catch (error) {
    missing(frame, error.message);
  }
}

function missing(frame, reason) {
  frame.classList.add("missing");
  frame.title = reason;
  frame.replaceChildren(el("span", { class: "none", "aria-hidden": "true" }, "no picture"), el("span", { class: "reason", dir: "auto" }, reason));
  return frame;
}
