// Where in the page one is, kept behind the # of the address: it can be sent, and Back works.

/** { view, text, verdict, where: [], offset, id } */
export function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const params = new URLSearchParams(query);
  return {
    view: path === "questions" ? "questions" : "fleet",
    text: params.get("text") ?? "",
    verdict: params.get("verdict") ?? "",
    where: params.getAll("where"),
    offset: Math.max(0, Number.parseInt(params.get("offset") ?? "0", 10) || 0),
    id: params.get("id"),
  };
}

export function href(place) {
  const params = asked(place);
  if (place.offset) params.append("offset", place.offset);
  if (place.id !== null && place.id !== undefined) params.append("id", place.id);
  const query = params.toString();
  return `#/${place.view}${query ? `?${query}` : ""}`;
}

/** What a search is asked with, without the page of it. */
export function asked({ text, verdict, where }) {
  const params = new URLSearchParams();
  if (text) params.append("text", text);
  if (verdict) params.append("verdict", verdict);
  for (const one of where ?? []) params.append("where", one);
  return params;
}

export function go(place) {
  location.hash = href(place);
}
