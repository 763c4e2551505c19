// Makes times local, polls the live parts of a page, filters as the user types, and copies commands.
// Pages work without it.
"use strict";

const POLL_MILLISECONDS = 5000;
const READING_MILLISECONDS = 1500;
const TYPING_MILLISECONDS = 200;

const dateAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function describeAge(seconds) {
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

function showTimes(root) {
  for (const element of root.querySelectorAll("time")) {
    const time = new Date(element.dateTime);
    if (Number.isNaN(time.getTime())) continue;
    const text = element.hasAttribute("data-age")
      ? describeAge((Date.now() - time.getTime()) / 1000)
      : dateAndTime.format(time);
    if (element.textContent !== text) element.textContent = text;
  }
}

function enableCopying(root) {
  for (const button of root.querySelectorAll("button[data-copy]")) button.hidden = !navigator.clipboard;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
});

// --- Live parts ------------------------------------------------------------------------------------------------------

const connection = document.getElementById("connection");
// Each live part, with its children as the server made them: those that stay the same are left alone.
const regions = new Map([...document.querySelectorAll("[data-live]")].map((region) => [region, sourcesOf(region)]));
const isLive = [...regions.keys()].some((region) => region.children.length);
let etag = null;
let timer = null;
let asked = 0;
// A page that is being left is not loaded again: that would end the way to another one, such as that of signing out.
let isLeaving = false;
window.addEventListener("beforeunload", () => { isLeaving = true; });
window.addEventListener("pageshow", () => { isLeaving = false; });

function sourcesOf(region) {
  return [...region.children].map((child) => child.outerHTML);
}

function replaceLive(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  for (const region of regions.keys()) {
    const fresh = template.content.querySelector(`#${region.id}`);
    if (fresh) replaceChildren(region, [...fresh.children]);
  }
  showTimes(document);
}

function replaceChildren(region, fresh) {
  const known = regions.get(region);
  regions.set(region, fresh.map((child) => child.outerHTML));
  if (fresh.length !== region.children.length) {
    keepPlace(region, () => region.replaceChildren(...fresh));
    enableCopying(region);
    return;
  }
  for (const [index, old] of [...region.children].entries()) {
    if (known[index] === regions.get(region)[index]) continue;
    keepPlace(old, () => old.replaceWith(fresh[index]));
    enableCopying(fresh[index]);
  }
}

// Focus stays where it was: at the element with the same id, or the link to the same page. What is open stays open.
function keepPlace(old, replace) {
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const open = [...old.querySelectorAll("details[open][id]")].map((element) => element.id);
  replace();
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (!focused) return;
  const same = (focused.id && document.getElementById(focused.id))
    || (focused.href && [...document.querySelectorAll("[data-live] a")].find((link) => link.href === focused.href));
  if (same) same.focus({ preventScroll: true });
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  const ask = ++asked;
  try {
    const headers = { Fragment: "1" };
    if (etag) headers["If-None-Match"] = etag;
    const response = await fetch(location.href, { headers, cache: "no-store", redirect: "error" });
    const isWaiting = document.querySelector("[data-live] [data-waiting]") !== null;
    // The session has ended, or the user may not see this any more: the page says so.
    if (!isLeaving && (response.status === 401 || (response.status === 404 && !isWaiting))) {
      location.reload();
      return;
    }
    const html = response.status === 200 ? await response.text() : null;
    if (ask !== asked) return; // the user asked for something else meanwhile
    if (html !== null) {
      etag = response.headers.get("ETag");
      if (!isLeaving && isWaiting && !html.includes("data-waiting")) {
        location.reload();
        return;
      }
      replaceLive(html);
    }
    connection.hidden = response.ok || response.status === 304 || isWaiting;
  } catch {
    if (ask !== asked) return;
    connection.hidden = false;
  }
  schedule();
}

function schedule() {
  clearTimeout(timer);
  const isReading = document.querySelector("[data-live] [data-reading]");
  timer = setTimeout(poll, isReading ? READING_MILLISECONDS : POLL_MILLISECONDS);
}

// --- Forms ------------------------------------------------------------------------------------------------------------

// A percentage or stages that are typed are meant.
document.addEventListener("input", (event) => {
  const choice = event.target.closest("[data-chooses]")?.dataset.chooses;
  if (choice) document.getElementById(choice).checked = true;
});

// --- Filters ---------------------------------------------------------------------------------------------------------

let typing = null;
let shown = location.search;

// The address says what is shown, so that it can be shared; going back reloads.
function applyFilter(form) {
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  const search = query.size ? `?${query}` : "";
  if (search === location.search) return;
  const isFirst = !history.state?.isFiltered;
  history[isFirst ? "pushState" : "replaceState"]({ isFiltered: true }, "", `${location.pathname}${search}`);
  shown = search;
  etag = null;
  poll();
}

document.addEventListener("input", (event) => {
  const form = event.target.closest("form[data-filter]");
  if (!form) return;
  clearTimeout(typing);
  typing = setTimeout(() => applyFilter(form), event.target.matches("select") ? 0 : TYPING_MILLISECONDS);
});
window.addEventListener("popstate", () => { if (location.search !== shown) location.reload(); });

// What an action did is old news beside live parts that show what came of it.
const OLD_NEWS_MILLISECONDS = 20000;
setTimeout(() => {
  for (const news of document.querySelectorAll("#main > .notice.good")) news.remove();
}, OLD_NEWS_MILLISECONDS);

showTimes(document);
enableCopying(document);
setInterval(() => showTimes(document), 5000);
if (isLive) {
  schedule();
  document.addEventListener("visibilitychange", poll);
}
