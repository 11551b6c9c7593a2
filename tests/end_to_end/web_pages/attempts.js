// Makes every attempt of the plan, each in every way that a page has, and reports what came of it.
"use strict";

/** What a page can find out: readable (it saw an answer), opened, loaded, sent, refused, nothing. */
async function within(attempt, patienceMs) {
  const ending = new AbortController();
  const made = [];
  const late = new Promise((resolve) => setTimeout(() => resolve({ seen: "nothing" }), patienceMs));
  const found = await Promise.race([attempt(ending.signal, made), late]).catch(
    (error) => ({ seen: "refused", why: String(error) }));
  // What goes on would keep one of the few connections that a browser has to a host.
  ending.abort();
  for (const each of made) {
    each.remove();
  }
  return found;
}

async function fetched(call, url, signal) {
  const { method, headers, body } = call;
  const answer = await fetch(url, { method, headers, body, signal });
  const reader = answer.body && answer.body.getReader();
  let text = "", parts = 0;
  for (let part; reader && !(part = await reader.read()).done; parts += 1) {
    text += new TextDecoder().decode(part.value);
  }
  const task = answer.headers.get("X-D8-Task");
  return { seen: "readable", status: answer.status, text: text.slice(0, 500), parts, task };
}

function asked(call, url, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    signal.onabort = () => request.abort();
    request.open(call.method, url);
    for (const [name, value] of Object.entries(call.headers || {})) {
      request.setRequestHeader(name, value);
    }
    request.onload = () => resolve({ seen: "readable", status: request.status });
    request.onerror = () => reject(new Error("xhr"));
    request.send(call.body);
  });
}

async function simple(call, url, signal) {
  const body = call.method === "GET" ? undefined : new Blob([call.body || ""], { type: "text/plain" });
  const answer = await fetch(url, { method: call.method, mode: "no-cors", body, signal });
  return { seen: answer.type === "opaque" ? "sent" : "readable" };
}

async function beacon(call, url) {
  return { seen: navigator.sendBeacon(url, new Blob([call.body || ""], { type: "text/plain" })) ? "sent" : "refused" };
}

/** A form whose text is the body: name, "=" and value put together are JSON again. */
function form(enctype) {
  return (call, url, signal, kept) => new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.name = "frame" + Math.random();
    document.body.append(frame);
    const made = document.createElement("form");
    Object.assign(made, { method: call.method, action: url, target: frame.name, enctype });
    const field = document.createElement("input");
    const body = call.body || "{}";
    field.name = body.slice(0, -1) + (body === "{}" ? "" : ",") + '"z":"';
    field.value = '"}';
    made.append(field);
    document.body.append(made);
    kept.push(frame, made);
    frame.onload = () => resolve({ seen: "sent" });
    made.submit();
  });
}

/** An element that fetches its address: what it shows is not readable, only whether it came. */
function element(tag, attribute, more) {
  return (call, url, signal, kept) => new Promise((resolve) => {
    const made = Object.assign(document.createElement(tag), more || {});
    made.onload = () => resolve({ seen: tag === "iframe" ? "sent" : "loaded" });
    made.onerror = () => resolve({ seen: "refused" });
    made[attribute] = url;
    kept.push(made);
    document.body.append(made);
  });
}

function socket(call, url) {
  return new Promise((resolve) => {
    const made = new WebSocket(new URL(url, location.href).href.replace("http:", "ws:"));
    made.onopen = () => resolve({ seen: "opened" });
    made.onerror = () => resolve({ seen: "refused" });
  });
}

function events(call, url, signal) {
  return new Promise((resolve) => {
    const made = new EventSource(url);
    signal.onabort = () => made.close();
    made.onopen = () => resolve({ seen: "opened" });
    made.onerror = () => resolve({ seen: "refused" });
  });
}

const WAYS = {
  fetch: fetched,
  xhr: asked,
  simple,
  beacon,
  socket,
  events,
  "form text/plain": form("text/plain"),
  "form urlencoded": form("application/x-www-form-urlencoded"),
  "form multipart": form("multipart/form-data"),
  "form get": form("text/plain"),
  img: element("img", "src"),
  script: element("script", "src"),
  style: element("link", "href", { rel: "stylesheet" }),
  frame: element("iframe", "src"),
};

async function main(plan) {
  const attempts = (target, call, ways) => ways.map(async (way) => ({
    target, way, method: call.method, path: call.path,
    ...await within((signal, made) => WAYS[way](call, target + call.path, signal, made), plan.patience_ms),
  }));
  const found = [];
  for (const target of plan.targets) {
    // A browser opens them one after the other, and takes its time after those that fail.
    const sockets = plan.sockets.flatMap((path) => attempts(target, { method: "GET", path }, ["socket"]));
    for (const call of plan.calls) {
      found.push(...await Promise.all(attempts(target, call, plan.ways[call.method] || plan.ways.other)));
    }
    found.push(...await Promise.all(sockets));
  }
  const told = JSON.stringify({ origin: self.origin, found });
  await fetch(plan.report, { method: "POST", mode: "no-cors", body: told });
}
