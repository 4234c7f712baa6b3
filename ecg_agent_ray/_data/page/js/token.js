// Entry of the bearer token that the service asks for.

import { token } from "./api.js";
import { $ } from "./dom.js";

export function askForToken(message) {
  $("token-error").textContent = message;
  $("token-button").hidden = false;
  if (!$("token-dialog").open) $("token-dialog").showModal();
}

/** @param {() => void} changed called when another token is used from now on */
export function setUpToken(changed) {
  $("token-button").hidden = !token.get();
  $("token-button").addEventListener("click", () => askForToken(""));
  $("token-form").addEventListener("submit", () => {
    token.set($("token").value.trim());
    $("token").value = "";
    changed();
  });
  $("token-forget").addEventListener("click", () => {
    token.set(null);
    $("token").value = "";
    $("token-dialog").close();
    changed();
  });
}
