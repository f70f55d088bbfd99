// What the server is asked: nothing but this server, and nothing but numbers of rows.

async function answered(response) {
  if (response.ok) return response;
  let why = response.statusText || "the server does not answer";
  try { why = (await response.json()).error || why; } catch { /* no JSON, no more words */ }
  throw new Error(why);
}

export const get = async (path, signal) => answered(await fetch(path, { signal }));
export const json = async (path) => (await get(path)).json();
export async function post(path, value, raw = false) {
  const headers = { "Content-Type": raw ? "application/octet-stream" : "application/json" };
  return answered(await fetch(path, { method: "POST", headers, body: raw ? value : JSON.stringify(value) }));
}
export const asked = async (path, value, raw) => (await post(path, value, raw)).json();

export function numbers(base64, Kind) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Kind(bytes.buffer);
}

export function saved(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export function element(kind, words, about = {}) {
  const made = document.createElement(kind);
  if (words !== undefined) made.textContent = words;  // whatever it says, it is text
  for (const [name, value] of Object.entries(about)) made.setAttribute(name, value);
  return made;
}
