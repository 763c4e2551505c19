// Makes times local, polls the live part of a page, and copies commands. Pages work without it.
"use strict";

const POLL_MILLISECONDS = 5000;
const READING_MILLISECONDS = 1500;

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

const live = document.getElementById("live");
const connection = document.getElementById("connection");
let etag = null;
let timer = null;

// Focus stays where it was: at the element with the same id, or the link to the same page.
function replaceLive(html) {
  const focused = live.contains(document.activeElement) ? document.activeElement : null;
  const open = [...live.querySelectorAll("details[open][id]")].map((element) => element.id);
  live.innerHTML = html;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focused) {
    const same = (focused.id && document.getElementById(focused.id))
      || (focused.href && [...live.querySelectorAll("a")].find((link) => link.href === focused.href));
    if (same) same.focus({ preventScroll: true });
  }
  enableCopying(live);
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const headers = { Fragment: "1" };
    if (etag) headers["If-None-Match"] = etag;
    const response = await fetch(location.href, { headers, cache: "no-store", redirect: "error" });
    if (response.status === 401) {
      location.reload();
      return;
    }
    if (response.status === 200) {
      etag = response.headers.get("ETag");
      const html = await response.text();
      if (live.querySelector("[data-waiting]") && !html.includes("data-waiting")) {
        location.reload();
        return;
      }
      replaceLive(html);
    }
    connection.hidden = response.ok || response.status === 304;
  } catch {
    connection.hidden = false;
  }
  showTimes(document);
  timer = setTimeout(poll, live.querySelector("[data-reading]") ? READING_MILLISECONDS : POLL_MILLISECONDS);
}

showTimes(document);
enableCopying(document);
setInterval(() => showTimes(document), 5000);
if (live.children.length) {
  timer = setTimeout(poll, live.querySelector("[data-reading]") ? READING_MILLISECONDS : POLL_MILLISECONDS);
  document.addEventListener("visibilitychange", poll);
}
