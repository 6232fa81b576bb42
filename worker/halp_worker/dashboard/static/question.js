// One question, with everything that is stored of it but the vectors themselves.

import * as address from "./address.js";
import { get } from "./api.js";
import { byId, el } from "./dom.js";
import { normsChart } from "./norms.js";
import { picture } from "./picture.js";
import { pageIds } from "./questions.js";
import { badge } from "./verdict.js";
import { count, norm, tokens } from "./words.js";

const dialog = byId("question");
let shownId = null;

export async function showQuestion(place) {
  if (place.id === null) {
    shownId = null;
    if (dialog.open) dialog.close();
    return;
  }
  if (place.id === shownId) return;
  shownId = place.id;
  if (!dialog.open) dialog.showModal();
  try {
    const found = await get("/api/question", { id: place.id });
    if (place.id === shownId) fill(place, body(found), found.question_text || "(no question)");
  } catch (error) {
    if (place.id === shownId) fill(place, [el("p", { class: "empty", dir: "auto" }, error.message)], "Not shown");
  }
}

function close() {
  address.go({ ...address.read(), id: null });
}

function fill(place, content, title) {
  const at = pageIds.indexOf(place.id);
  const step = (text, label, id, key) => el("button", {
    type: "button", class: "page", "aria-label": label, title: `${label} (${key})`, disabled: id === undefined,
    click: () => address.go({ ...address.read(), id }),
  }, text);
  dialog.replaceChildren(
    el("div", { class: "bar-top" },
      el("code", { class: "id", dir: "auto" }, place.id),
      el("div", { class: "steps" },
        step("‹", "Previous question", at > 0 ? pageIds[at - 1] : undefined, "←"),
        step("›", "Next question", at >= 0 ? pageIds[at + 1] : undefined, "→"),
        el("button", { type: "button", class: "page close", "aria-label": "Close", title: "Close (Esc)", click: close }, "×"))),
    el("div", { class: "detail" }, el("h2", { id: "question-title", dir: "auto" }, title), ...content));
  dialog.scrollTop = 0;
}

function body(one) {
  return [
    el("div", { class: "two" },
      el("div", {},
        picture(one.question_id, "large", { alt: `The picture the question is about: ${one.image}` }),
        el("p", { class: "muted small", dir: "auto" }, one.image)),
      el("div", {},
        el("div", { class: "pair" },
          el("div", {}, el("h3", {}, "Truth"), el("p", { class: "said", dir: "auto" }, one.ground_truth || "–")),
          el("div", {}, el("h3", {}, "Answer ", badge(one)), el("p", { class: "said", dir: "auto" }, one.answer || "–"))),
        facts(one),
        Object.keys(one.metadata).length ? el("h3", {}, "Metadata") : null,
        table(Object.entries(one.metadata).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)])))),
    el("h3", {}, "Norms by layer"),
    normsChart(one),
    arrays(one),
    el("h3", {}, "In Python"),
    command(one.commands.python),
    el("h3", {}, "In a shell"),
    command(one.commands.shell),
  ];
}

function facts(one) {
  return table([
    ["prompt", `${tokens(one.prompt_tokens)}, ${count(one.image_tokens)} of them of the picture`],
    ["answer", `${tokens(one.answer_tokens)}, ended by ${one.finish_reason || "nobody knows what"}`],
    ["picture grid", `${one.image_grid_thw.join(" × ")} patches (t × h × w)`],
    ...Object.entries(one.positions).map(([name, at]) => [name, `token ${count(at)} of the prompt`]),
    ["segment", one.segment],
    ["picture's SHA-256", one.image_sha256 || "unknown"],
  ]);
}

function table(pairs) {
  return el("dl", { class: "facts" }, ...pairs.map(([name, value]) =>
    el("div", {}, el("dt", { dir: "auto" }, name), el("dd", { dir: "auto" }, value))));
}

function arrays(one) {
  const rows = Object.entries(one.arrays).map(([name, { shape, norms }]) => el("tr", {},
    el("th", { scope: "row", dir: "auto" }, name),
    el("td", {}, shape.map(count).join(" × ")),
    ...(shape.length > 1
      ? norms.map((value) => el("td", { class: "num" }, norm(value)))
      : [el("td", { class: "num" }, norm(norms[0])), ...one.layers.slice(1).map(() => el("td", {}))])));
  return el("div", { class: "scroll" }, el("table", { class: "numbers" },
    el("caption", { class: "hidden" }, "Euclidean norms of the stored vectors"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "array"), el("th", { scope: "col" }, "shape"),
      ...one.layers.map((layer) => el("th", { scope: "col", class: "num" }, `layer ${layer}`)))),
    el("tbody", {}, ...rows)));
}

function command(text) {
  const copied = el("button", { type: "button", class: "plain copy" }, "Copy");
  const code = el("pre", { tabindex: "0" }, text);
  copied.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copied.textContent = "Copied";
    } catch { // a browser keeps its clipboard from pages that came without TLS from elsewhere
      getSelection().selectAllChildren(code);
      copied.textContent = "Selected";
    }
    setTimeout(() => { copied.textContent = "Copy"; }, 1500);
  });
  return el("div", { class: "command" }, code, copied);
}

dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  close();
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) close(); // beside it
});
dialog.addEventListener("keydown", (event) => {
  if (event.target.closest("pre") || event.altKey || event.ctrlKey || event.metaKey) return;
  const at = pageIds.indexOf(shownId);
  const id = { ArrowLeft: pageIds[at - 1], ArrowRight: pageIds[at + 1] }[event.key];
  if (at >= 0 && id !== undefined) address.go({ ...address.read(), id });
});
