// Reads the form, asks for recommendations at every change, and shows them.

import * as api from "./api.js";
import * as conversation from "./conversation.js";
import { $, element, percent, tellProblem } from "./dom.js";
import * as history from "./history.js";
import { ranking } from "./ranking.js";

const WITHOUT_PRIOR = "without its prior";
const inserted = new Set();
let known = { runs: [] };
let asking = new AbortController();

const runName = () => $("run").value || undefined;
const runInfo = (name) => known.runs.find((one) => one.served.run === name);

function number(id) {
  return $(id).value === "" ? null : Number($(id).value);
}

function constraint() {
  const [low, high] = [number("low"), number("high")];
  const wanted = { unseen: $("unseen").checked };
  if ($("category").value.trim()) wanted.category = $("category").value.trim();
  if (low !== null || high !== null) wanted.price = [low ?? 0, high ?? Number.MAX_VALUE];
  return wanted;
}

function question(name, prior) {
  const body = {
    history: history.ids(),
    k: Math.min(known.max_k, Math.max(1, number("k") ?? 10)),
    constraint: constraint(),
    explain: true,
    prior,
  };
  if (name) body.run = name;
  if ($("event").value) body.event = $("event").value;
  if ($("diversity").value) body.diversity = { kind: $("diversity").value, weight: number("weight") };
  return body;
}

// The columns to show: a heading and a request for each.
function columns() {
  const [name, other] = [runName(), $("compare").value];
  const prior = $("prior").checked;
  if (!other) return [["", question(name, prior)]];
  if (other === WITHOUT_PRIOR) return [[`${name}, with its prior`, question(name, true)], [`${name}, ${WITHOUT_PRIOR}`, question(name, false)]];
  return [name, other].map((one) => [one, question(one, prior)]);
}

async function ask() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  $("columns").setAttribute("aria-busy", "true");
  const wanted = columns();
  const start = performance.now();
  try {
    const answers = await Promise.all(wanted.map(([, body]) => api.recommend(body, signal)));
    show(wanted.map(([heading]) => heading), answers, performance.now() - start);
    tellProblem(null);
  } catch (error) {
    if (error.name === "AbortError") return;
    tellProblem(error);
  }
  $("columns").setAttribute("aria-busy", "false");
}

function show(headings, answers, ms) {
  const sets = answers.map((answer) => new Set(answer.items.map((one) => one.id)));
  const drawn = answers.map((answer, place) =>
    ranking(answer, headings[place], { add: history.add, inserted, others: sets.length > 1 ? sets[1 - place] : null }),
  );
  $("columns").replaceChildren(...drawn);
  const { served } = answers[0];
  $("served").textContent = `policy ${served.policy} · catalogue ${served.catalog}`;
  const common = sets.length > 1 ? `, ${[...sets[0]].filter((id) => sets[1].has(id)).length} in both` : "";
  $("status").textContent = `${answers[0].items.length} items${common} · ${ms.toFixed(0)} ms`;
}

function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => element("option", { value, text })));
  if (options.some(([value]) => value === before)) select.value = before;
}

function showRun() {
  const info = runInfo($("run").value);
  const others = known.runs.map((one) => one.served.run).filter((name) => name !== $("run").value);
  const hasPrior = info.prior !== "none";
  const alone = hasPrior ? [[WITHOUT_PRIOR, WITHOUT_PRIOR]] : [];
  fill($("compare"), [["", "nothing"], ...others.map((name) => [name, name]), ...alone]);
  $("prior").disabled = !hasPrior || $("compare").value === WITHOUT_PRIOR;
  $("prior-text").textContent = hasPrior ? `With the prior (${info.prior})` : "This run has no prior";
  fill($("event"), [["", "usual"], ...info.events.map((name) => [name, name])]);
  $("event-row").hidden = !info.events.length;
  $("chat-box").hidden = !info.chat;
  $("weight-row").hidden = !$("diversity").value;
}

async function changeCatalogue(change) {
  $("inserted").textContent = "…";
  try {
    $("inserted").textContent = await change($("new-id").value.trim(), $("key").value);
    tellProblem(null);
    await ask();
  } catch (error) {
    $("inserted").textContent = "";
    tellProblem(error);
  }
}

async function insertItem(id, key) {
  const categories = $("new-categories").value.split(">").map((name) => name.trim()).filter(Boolean);
  await api.insert([{ id, title: $("new-title").value, description: $("new-description").value, categories }], key);
  inserted.add(id);
  if (!history.ids().length) return "Inserted; it can be searched for, and recommended after a history.";
  const { items } = await api.score({ history: history.ids(), items: [id], run: runName() });
  return `Inserted; after this history its probability is ${percent(items[0].score)}.`;
}

async function removeItem(id, key) {
  await api.remove(id, key);
  inserted.delete(id);
  return "Removed; it may stay in a history, and is not recommended any more.";
}

async function start() {
  known = await api.about();
  fill($("run"), known.runs.map((one) => [one.served.run, one.served.run]));
  fill($("categories"), known.categories.map((name) => [name, name]));
  $("k").max = known.max_k;
  if (!known.changes) $("inserted").textContent = "This service has no API key, so its catalogue cannot be changed.";
  if (matchMedia("(max-width: 46rem)").matches) $("settings-box").open = false; // answers come first on a phone
  showRun();
  conversation.start(runName);
  await history.start(ask, runName);
  for (const id of ["run", "compare", "settings"]) {
    $(id).addEventListener("change", () => {
      showRun();
      ask();
    });
  }
  $("settings").addEventListener("submit", (event) => event.preventDefault());
  $("insert").addEventListener("submit", (event) => {
    event.preventDefault();
    changeCatalogue(insertItem);
  });
  $("remove").addEventListener("click", () => changeCatalogue(removeItem));
  await ask();
}

start().catch(tellProblem);
