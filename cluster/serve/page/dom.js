// Elements made from text. Titles and names come from the catalogue, so nothing is ever read as HTML.

export const $ = (id) => document.getElementById(id);

export function element(tag, options = {}, children = []) {
  const { text, onclick, ...attributes } = options;
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (onclick) made.addEventListener("click", onclick);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export function percent(share) {
  const value = 100 * share;
  if (value === 0) return "0 %";
  return value >= 10 ? `${value.toFixed(0)} %` : value >= 0.1 ? `${value.toFixed(1)} %` : "< 0.1 %";
}

export function tellProblem(error) {
  $("problem").textContent = error ? error.message : "";
  $("problem").hidden = !error;
}
