// Plain names of the classifier's statements: code -> {name, meaning, kind}.

import { getJson } from "./api.js";

let names = {};

export async function loadNames() {
  names = await getJson("/page/statements.json").catch(() => ({}));
}

export const nameOf = (code) => names[code]?.name ?? code;
export const meaningOf = (code) => names[code]?.meaning ?? "";
export const capital = (text) => text[0].toUpperCase() + text.slice(1);
