// The page's one loop: what the stream says is kept, and drawn. A broken connection is taken up again by the browser,
// and its first round brings everything anew.

import { drawExact, drawLoss } from "/static/charts.js";
import { showConnection, showEvents, showExact, showFindings, showQueue, showStatus, showVersions } from "/static/view.js";

const kept = { points: [], width: 1, versions: { champion: null, versions: [] }, evaluations: [] };

const loss = () => drawLoss(kept.points, kept.width, kept.versions);
const exact = () => drawExact(kept.evaluations, kept.versions);

const handlers = {
  status: showStatus,
  queue: showQueue,
  events: showEvents,
  versions: (versions) => { kept.versions = versions; showVersions(versions); loss(); exact(); },
  evaluations: (evaluations) => { kept.evaluations = evaluations; showExact(evaluations); exact(); },
  findings: showFindings,
  curve: (curve) => { kept.points = curve.points; kept.width = curve.width; loss(); },
  steps: (curve) => { kept.points.push(...curve.points); loss(); },
  fault: (fault) => showConnection("broken", fault.text),
};

function listen() {
  const stream = new EventSource("/api/stream");
  for (const [name, handle] of Object.entries(handlers)) {
    stream.addEventListener(name, (event) => {
      if (name !== "fault") showConnection("live", "live");
      handle(JSON.parse(event.data));
    });
  }
  stream.addEventListener("error", () => {
    showConnection("broken", "not connected; trying again");
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  });
}

async function command(event) {
  const button = event.currentTarget;
  button.disabled = true; // until the next status says what came of it
  try {
    const answer = await fetch(`/api/control/${button.dataset.command}`, { method: "POST" });
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  } catch (error) {
    button.disabled = false;
    showConnection("broken", `${button.dataset.command} was not taken: ${error.message}`);
  }
}

for (const button of document.querySelectorAll("button[data-command]")) button.addEventListener("click", command);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { loss(); exact(); });
loss();
exact();
listen();
