// The routes of the service that the page uses. Every function throws an Error that says what was wrong.

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer; is it running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error || `The service answered ${answer.status}.`);
  return content;
}

const post = (path, body, options = {}) =>
  call(path, {
    ...options,
    method: "POST",
    headers: { "content-type": "application/json", ...options.headers },
    body: JSON.stringify(body),
  });

const run = (name) => (name ? `run=${encodeURIComponent(name)}` : "");

export const about = () => call("v1/about");
export const recommend = (body, signal) => post("v1/recommend", body, { signal });
export const score = (body) => post("v1/score", body);
export const chat = (body) => post("v1/chat", body);
export const item = (id, name) => call(`v1/items/${encodeURIComponent(id)}?${run(name)}`);
export const insert = (items, key) => post("v1/items", { items }, { headers: { "x-api-key": key } });
export const remove = (id, key) =>
  call(`v1/items/${encodeURIComponent(id)}`, { method: "DELETE", headers: { "x-api-key": key } });

export async function search(text, name, signal) {
  return (await call(`v1/items?title=${encodeURIComponent(text)}&limit=12&${run(name)}`, { signal })).items;
}
