// Asks this page's own server. Every answer is JSON; an error is a sentence.

/** What went wrong, in a sentence. status: 0 where nothing answered. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export async function get(path, params = [], signal = undefined) {
  const query = new URLSearchParams(params).toString();
  let response;
  try {
    response = await fetch(query ? `${path}?${query}` : path, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The dashboard does not answer: was it stopped?", 0);
  }
  let answer;
  try {
    answer = await response.json();
  } catch {
    answer = {};
  }
  if (!response.ok) {
    throw new ApiError(answer.error ?? `The dashboard answered ${response.status}.`, response.status);
  }
  return answer;
}

export function pictureUrl(id, size) {
  return `/api/picture?${new URLSearchParams({ id, size })}`;
}
