// Colours: as the system has them, or as chosen here. The choice is all the page keeps.

import { $ } from "./dom.js";

const KEY = "ecg-agent-theme";
const CHOICES = ["automatic", "light", "dark"];

export function setUpTheme(changed) {
  const button = $("theme-button");
  const apply = (choice) => {
    document.documentElement.dataset.theme = choice;
    button.querySelector(".sr").textContent = `Colours: ${choice}`;
    button.title = `Colours: ${choice}`;
    changed();
  };
  button.addEventListener("click", () => {
    const choice = CHOICES[(CHOICES.indexOf(document.documentElement.dataset.theme) + 1) % CHOICES.length];
    localStorage.setItem(KEY, choice);
    apply(choice);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  const kept = localStorage.getItem(KEY);
  apply(CHOICES.includes(kept) ? kept : "automatic");
}
