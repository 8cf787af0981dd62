// The conversation with the policy, kept on this page alone.

import * as api from "./api.js";
import { $, element, tellProblem } from "./dom.js";

let messages = [];

export function start(runName) {
  $("chat").addEventListener("submit", (event) => {
    event.preventDefault();
    say($("say").value.trim(), runName());
  });
  $("forget").addEventListener("click", () => {
    messages = [];
    draw();
    $("say").focus();
  });
}

async function say(text, name) {
  if (!text) return;
  const button = $("chat").querySelector("button[type=submit]");
  button.disabled = true;
  messages.push({ role: "user", content: text });
  draw();
  try {
    const reply = await api.chat({ messages, run: name });
    messages.push({ role: "assistant", content: reply.text });
    $("say").value = "";
    tellProblem(null);
  } catch (error) {
    messages.pop();
    tellProblem(error);
  }
  button.disabled = false;
  draw();
}

function draw() {
  $("talk").replaceChildren(...messages.map((one) => element("p", { class: one.role, text: one.content })));
}
