"use strict";
// The id of the export is in the URL's hash, so that a reload, a bookmark and the way back follow the same export.
// Texts of users and of errors become text nodes only, never HTML.
const byId = id => document.getElementById(id);
const form = byId("order"), shown = byId("export"), bar = byId("progress"), place = byId("place");
const pause = ms => new Promise(done => setTimeout(done, ms));
/** The export that the page follows; an older one that still waits for its answer must not write. */
let followed = "";

function say(text, kind = "") {
  const state = byId("state");
  state.className = kind;
  // A screen reader reads each change, so there is none without need.
  if (state.textContent !== text) state.textContent = text;
}

function show(progress) {
  bar.value = progress;
  byId("percent").textContent = `${Math.floor(progress * 100)} %`;
}

form.addEventListener("submit", async event => {
  event.preventDefault();
  try {
    const ordered = await fetch("/exports", { method: "POST", body: new URLSearchParams(new FormData(form)) });
    if (ordered.status !== 202) return say(await ordered.text(), "failed");
    location.hash = ordered.headers.get("location").split("/").pop(); // and so `follow`
  } catch {
    say("The server cannot be reached. Try again.", "failed");
  }
});

async function follow() {
  const id = followed = location.hash.slice(1);
  place.hidden = shown.hidden = true;
  if (!id) return say("Nothing is ordered.");
  const url = `/exports/${encodeURIComponent(id)}`;
  while (id === followed) {
    let answer, body;
    try {
      answer = await fetch(url);
      body = answer.ok ? await answer.json() : await answer.text();
    } catch {
      if (id === followed) say("The connection is lost. Trying again.", "lost");
      await pause(1000);
      continue;
    }
    if (id !== followed) return;
    if (!answer.ok) {
      shown.hidden = true;
      return say(body, "failed");
    }
    if (tell(body)) return;
    await pause(200);
  }
}

/** Shows a status, and says whether it is the last. */
function tell(status) {
  shown.hidden = false;
  byId("name").textContent = status.name;
  if (status.progress !== undefined) show(status.progress);
  switch (status.state) {
    case "waiting": say("Waiting for its turn."); return false;
    case "active": say("Working."); return false;
    case "failed": say(`Failed: ${status.error}`, "failed"); return true;
    default:
      say("Done.", "completed");
      byId("result").href = status.result;
      place.hidden = false;
      return true;
  }
}

addEventListener("hashchange", follow);
follow();
