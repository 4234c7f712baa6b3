// The service's HTTP API: requests with the user's token, problems as errors, server-sent events.

const TOKEN = "ecg-agent-token";
let onUnauthorized = () => {};

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

/** Called with the message each time the service refuses a request for want of a valid token. */
export function needsToken(callback) {
  onUnauthorized = callback;
}

/** What the service said no with: HTTP status (0: not reached) and seconds to wait, if it told. */
export class ApiError extends Error {
  constructor(message, status, retryAfterS = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/**
 * A request; resolves to the Response of a 2xx.
 * @throws {ApiError} with words for the user
 */
export async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service cannot be reached.", 0);
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const message = [sentence(problem.detail || answer.statusText), sentence(problem.hint)].filter(Boolean).join(" ");
  if (answer.status === 401) onUnauthorized(token.get() ? "The service does not know this token." : "");
  throw new ApiError(message, answer.status, Number(answer.headers.get("Retry-After")) || null);
}

export const getJson = async (path, options) => (await request(path, options)).json();

export const postJson = async (path, body, options = {}) =>
  (await request(path, { ...options, ...json(body) })).json();

export const json = (body) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

function sentence(text) {
  if (!text) return "";
  const whole = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/** The JSON objects of an event stream, up to `[DONE]`. */
export async function* serverEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError("The service broke off in the middle of its answer.", 0);
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part === "data: [DONE]") return;
        if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
