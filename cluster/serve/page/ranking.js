// One answer as a ranked list: titles, scores, paths, and why.

import { element, percent } from "./dom.js";

const SOURCES = { popularity: "the most popular items" };

// `others`: ids of the list beside it, null without one; `inserted`: ids that were inserted on this page.
export function ranking(answer, heading, { add, inserted, others }) {
  const best = Math.max(...answer.items.map((one) => one.score), Number.MIN_VALUE);
  const rows = answer.items.map((one, place) => row(one, place, best, { add, inserted, others }));
  const notes = [...answer.notes];
  if (SOURCES[answer.source]) notes.unshift(SOURCES[answer.source]);
  return element("div", { class: "answer" }, [
    ...(heading ? [element("h3", { text: heading })] : []),
    ...notes.map((text) => element("p", { class: "quiet", text })),
    element("ol", { class: "ranking", "aria-label": heading || "Recommended items" }, rows),
    ...(rows.length ? [] : [element("p", { text: "No item fits." })]),
  ]);
}

function row(one, place, best, { add, inserted, others }) {
  const title = element("span", { class: "title", text: one.title || one.id, title: one.id });
  if (inserted.has(one.id)) title.append(element("span", { class: "badge", text: "inserted" }));
  if (others && !others.has(one.id)) title.append(element("span", { class: "badge other", text: "only here" }));
  const bar = element("div");
  bar.style.width = `${(100 * one.score) / best}%`;
  return element("li", { "data-id": one.id }, [
    element("div", { class: "line" }, [
      element("span", { class: "rank", text: String(place + 1) }),
      title,
      element("span", { class: "score", text: percent(one.score) }),
      element("button", {
        type: "button",
        class: "small",
        text: "+",
        "aria-label": `Add ${one.title || one.id} to the history`,
        onclick: () => add(one),
      }),
    ]),
    element("div", { class: "bar", "aria-hidden": "true" }, [bar]),
    ...(one.why ? [why(one)] : []),
  ]);
}

function why(one) {
  const { steps, nearest, basis } = one.why;
  const path = one.path.length ? one.path.slice(0, -1).join(" › ") : steps.map((step) => step.name).join("");
  const parts = steps.map((step) =>
    element("li", {}, [
      element("span", { text: step.name }),
      element("span", { text: `${percent(step.probability)}, ${step.items} item${step.items === 1 ? "" : "s"}` }),
    ]),
  );
  const like = nearest.map((near) => `${near.title || near.id} (${near.similarity.toFixed(2)})`).join(" · ");
  const by = basis === "co-occurrence" ? "Often together with" : "Nearest in the history by content";
  return element("details", { class: "why" }, [
    element("summary", { text: path ? `Why: ${path}` : "Why" }),
    element("p", { text: "Each code of its semantic ID, how probable it was after those before, and what is left:" }),
    element("ol", { class: "steps" }, parts),
    ...(like ? [element("p", { text: `${by}: ${like}` })] : []),
  ]);
}
