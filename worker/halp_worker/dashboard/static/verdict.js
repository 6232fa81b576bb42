// Whether the answer is right, and the rule that says so.

import { el } from "./dom.js";

export function badge({ verdict, rule, note }) {
  return el("span", { class: `badge ${verdict}`, title: note ? `${rule} (${note})` : rule }, verdict);
}
