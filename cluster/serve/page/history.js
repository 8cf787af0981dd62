// The history: a list of items, oldest first, and the search box that adds to it. The address keeps it.

import * as api from "./api.js";
import { $, element, tellProblem } from "./dom.js";

const WAIT_MS = 150; // after the last key before titles are searched
let items = [];
let hits = [];
let chosen = -1;
let timer = 0;
let searching = new AbortController();
let changed = () => {};

export const ids = () => items.map((one) => one.id);

export async function start(onChange, runName) {
  changed = onChange;
  $("search").addEventListener("input", () => later(runName));
  $("search").addEventListener("keydown", onKey);
  $("search").addEventListener("blur", () => setTimeout(close, 150));
  $("clear").addEventListener("click", () => set([]));
  const wanted = new URLSearchParams(location.hash.slice(1)).getAll("item");
  items = await Promise.all(wanted.map((id) => api.item(id, runName()).catch(() => ({ id, title: "not in the catalogue" }))));
  draw();
}

export function add(one) {
  set([...items, { id: one.id, title: one.title }]);
}

function set(next) {
  items = next;
  const address = new URLSearchParams(items.map((one) => ["item", one.id])).toString();
  history.replaceState(null, "", address ? `#${address}` : location.pathname);
  draw();
  changed();
}

function draw() {
  $("history").replaceChildren(
    ...items.map((one, place) =>
      element("li", {}, [
        element("span", { text: one.title || one.id }, [element("span", { class: "id", text: ` ${one.id}` })]),
        element("button", {
          type: "button",
          class: "small",
          text: "×",
          "aria-label": `Remove ${one.title || one.id}`,
          onclick: () => drop(place),
        }),
      ]),
    ),
  );
  $("history-empty").hidden = items.length > 0;
  $("clear").hidden = items.length < 2;
}

function drop(place) {
  set(items.filter((_, other) => other !== place));
  const buttons = $("history").querySelectorAll("button");
  (buttons[Math.min(place, buttons.length - 1)] || $("search")).focus();
}

function later(runName) {
  clearTimeout(timer);
  timer = setTimeout(() => find(runName()), WAIT_MS);
}

async function find(name) {
  searching.abort();
  searching = new AbortController();
  const text = $("search").value.trim();
  if (!text) return close();
  try {
    hits = await api.search(text, name, searching.signal);
    chosen = hits.length ? 0 : -1;
    showHits();
  } catch (error) {
    if (error.name !== "AbortError") tellProblem(error);
  }
}

function showHits() {
  const options = hits.map((one, place) => {
    const option = element("li", { id: `hit-${place}`, role: "option", "aria-selected": String(place === chosen) }, [
      element("div", { text: one.title || one.id }),
      element("div", { class: "id", text: one.id }),
    ]);
    option.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the search box keeps the focus
      take(place);
    });
    return option;
  });
  const none = element("li", { role: "option", "aria-disabled": "true", text: "No title has these words." });
  $("hits").replaceChildren(...(options.length ? options : [none]));
  $("hits").hidden = false;
  $("search").setAttribute("aria-expanded", "true");
  mark();
}

function mark() {
  const options = [...$("hits").querySelectorAll("[id]")];
  options.forEach((option, place) => option.setAttribute("aria-selected", String(place === chosen)));
  if (chosen < 0) return $("search").removeAttribute("aria-activedescendant");
  $("search").setAttribute("aria-activedescendant", `hit-${chosen}`);
  options[chosen].scrollIntoView({ block: "nearest" });
}

function close() {
  hits = [];
  chosen = -1;
  $("hits").hidden = true;
  $("search").setAttribute("aria-expanded", "false");
  $("search").removeAttribute("aria-activedescendant");
}

function take(place) {
  const one = hits[place];
  $("search").value = "";
  close();
  if (one) add(one);
}

function onKey(event) {
  if (event.key === "Escape") return close();
  if (event.key === "Enter") {
    event.preventDefault();
    return take(chosen);
  }
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !hits.length) return;
  event.preventDefault();
  chosen = (chosen + step + hits.length) % hits.length;
  mark();
}
