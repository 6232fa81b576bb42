// Whether answer and truth are the same, letter for letter once tidied.

import { el } from "./dom.js";

const TITLES = {
  matches: "The same as the truth once case and outer punctuation are taken off",
  differs: "Not the same letters as the truth; no judgement whether it is right",
};

export function badge(agreement) {
  return agreement === null
    ? el("span", { class: "badge none", title: "Truth or answer is empty" }, "–")
    : el("span", { class: `badge ${agreement}`, title: TITLES[agreement] }, agreement);
}
