// The page's text, tiles and lists. Whatever comes from data goes in by textContent: it is shown, never interpreted.

import { DASH, clock, duration, number, percent, significant } from "/static/format.js";

const byId = (id) => document.getElementById(id);
const TREND = { improving: "improving", degrading: "getting worse", stable: "steady" };
const GRAVE = new Set(["alert", "crash_loop", "fault", "job_failed", "refused", "worker_exit"]);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function tile(id, value, note) {
  byId(id).querySelector(".value").textContent = value;
  const line = byId(id).querySelector(".note");
  line.textContent = note;
  line.title = note;
}

function joined(...parts) {
  return parts.filter(Boolean).join(" · ");
}

export function showStatus(status) {
  const pill = byId("status-pill");
  pill.textContent = status.status;
  pill.dataset.status = status.status;
  document.title = `${status.status} · Stokehold`;
  byId("model-name").textContent = status.model_name ?? "";
  const total = status.total_steps === null ? "" : ` of ${number(status.total_steps)}`;
  byId("progress-step").textContent = status.current_step === null ? "" : `step ${number(status.current_step)}${total}`;
  byId("progress-file").textContent = status.current_file ?? "";
  byId("progress-eta").textContent = status.eta_seconds === null ? "" : `${duration(status.eta_seconds)} left`;
  const share = status.batch_total_steps ? status.batch_step / status.batch_total_steps : 0;
  byId("file-progress").value = share;
  tile("tile-loss", significant(status.loss), joined(
    status.streaming_ce === null ? "" : `smoothed ${significant(status.streaming_ce)}`, TREND[status.loss_trend]));
  tile("tile-rate", number(status.tokens_per_sec), joined(
    status.learning_rate === null ? "" : `learning rate ${status.learning_rate.toExponential(1)}`));
  showControls(status.status);
  showMachine(status);
  showSample(status);
  showAlerts(status.active_alerts);
}

function showControls(word) {
  const paused = word === "paused";
  byId("pause").hidden = paused;
  byId("resume").hidden = !paused;
  byId("pause").disabled = word !== "training";
  byId("resume").disabled = false;
}

function showMachine({ gpu, ram, disk }) {
  const reading = (id, text) => { byId(id).querySelector(".reading").textContent = text; };
  const meter = (id, used, total) => {
    const bar = byId(id).querySelector("progress");
    bar.hidden = used === null || !total;
    bar.value = bar.hidden ? 0 : used / total;
  };
  const heat = joined(gpu.temperature_c === null ? "" : `${number(gpu.temperature_c)} °C`,
    gpu.power_w === null ? "" : `${number(gpu.power_w)} W`);
  const memory = gpu.vram_used_gb === null ? "" : `${number(gpu.vram_used_gb, 1)} / ${number(gpu.vram_total_gb)} GB`;
  meter("machine-gpu", gpu.vram_used_gb, gpu.vram_total_gb);
  reading("machine-gpu", joined(memory, heat) || "no reading");
  meter("machine-ram", ram.used_gb, ram.total_gb);
  reading("machine-ram", `${number(ram.used_gb, 1)} / ${number(ram.total_gb)} GB`);
  reading("machine-disk", disk.free_gb === null ? "no reading" : `${number(disk.free_gb)} GB free`);
}

function showSample(status) {
  const known = status.current_prompt !== null;
  byId("sample-empty").hidden = known;
  byId("sample-body").hidden = !known;
  byId("sample-match").hidden = !known;
  if (!known) return;
  byId("sample-prompt").textContent = status.current_prompt;
  byId("sample-gold").textContent = status.golden_answer;
  byId("sample-answer").textContent = status.model_answer;
  byId("sample-match").textContent = status.answer_matches ? "exact match" : "no match";
  byId("sample-match").dataset.match = String(status.answer_matches);
}

function showAlerts(alerts) {
  const list = byId("alerts");
  list.hidden = alerts.length === 0;
  list.replaceChildren(...alerts.map((alert) => {
    const item = make("li");
    item.dataset.severity = alert.severity;
    item.dataset.kind = alert.kind;
    item.append(make("b", "", alert.kind.replaceAll("_", " ")), alert.text);
    return item;
  }));
}

export function showQueue(jobs) {
  const waiting = jobs.filter((job) => ["queued", "running", "paused"].includes(job.state));
  byId("queue-note").textContent = waiting.length ? `${waiting.length} to do` : "";
  byId("queue-empty").hidden = jobs.length > 0;
  byId("queue").replaceChildren(...jobs.map((job) => {
    const item = make("li");
    item.dataset.state = job.state;
    item.dataset.job = job.id;
    const running = job.state === "running" || job.state === "paused";
    const share = running && job.kind === "train" ? ` ${percent(job.progress, 0)}` : "";
    const rank = job.priority === "normal" || !waiting.includes(job) ? "" : `${job.priority} · `;
    item.append(make("span", "main", joined(job.kind, job.file ?? "")), make("span", "side", `${rank}${job.state}${share}`));
    if (share) {
      const bar = make("progress");
      bar.value = job.progress;
      item.append(bar);
    }
    if (job.error) item.append(make("span", "more", job.error));
    return item;
  }));
}

export function showVersions({ champion, versions }) {
  byId("versions-empty").hidden = versions.length > 0;
  byId("versions").hidden = versions.length === 0;
  byId("versions").querySelector("tbody").replaceChildren(...versions.map((version) => {
    const row = make("tr");
    row.dataset.version = version.name;
    const name = make("td", "", version.name);
    if (version.name === champion) name.append(make("span", "crown", "champion"));
    row.append(name, make("td", "number", number(version.step)), make("td", "number", percent(version.exact)),
      make("td", "", clock(version.created)));
    return row;
  }));
  const best = versions.find((version) => version.name === champion);
  tile("tile-champion", champion ?? "–", best === undefined ? "no version is served yet" : joined(
    best.exact === null ? "" : `${percent(best.exact)} held-out`, best.step === null ? "" : `step ${number(best.step)}`));
}

export function showExact(evaluations) {
  const trained = evaluations.filter((evaluation) => evaluation.exact !== null);
  const newest = trained.at(-1);
  if (newest === undefined) {
    tile("tile-exact", "–", evaluations.length ? "nothing was judged" : "not evaluated yet");
    return;
  }
  const suites = Object.values(newest.suites).filter((suite) => suite.exact !== null);
  const only = suites.length === 1 ? suites[0] : null;
  const interval = only?.exact_ci ? `95 %: ${number(100 * only.exact_ci[0])}–${number(100 * only.exact_ci[1])}` : "";
  const items = suites.reduce((sum, suite) => sum + suite.n, 0);
  const losses = suites.filter((suite) => suite.nll_per_token !== null);
  const loss = losses.length === 1 ? `loss ${significant(losses[0].nll_per_token)}` : "";
  tile("tile-exact", percent(newest.exact), joined(interval, `${number(items)} items`, loss));
}

export function showFindings({ evaluation, ref, created, readings }) {
  byId("readings-empty").hidden = evaluation !== null;
  byId("readings-note").textContent = evaluation === null ? "" : joined(`of ${ref}`, `judged ${clock(created)}`);
  byId("readings").replaceChildren(...readings.map(({ name, state, line }) => {
    const item = make("li");
    item.dataset.reading = name;
    item.dataset.state = state ?? "unknown";
    const text = make("span", "line", line ?? DASH);
    text.title = line ?? "";
    item.append(make("span", "kind", name.replaceAll("_", " ")), text, make("span", "side", state?.replaceAll("_", " ") ?? DASH));
    return item;
  }));
}

export function showEvents(events) {
  byId("events-empty").hidden = events.length > 0;
  byId("events").replaceChildren(...[...events].reverse().map((event) => {
    const item = make("li");
    item.dataset.grave = String(GRAVE.has(event.kind));
    item.dataset.kind = event.kind;
    const text = make("span", "main");
    text.append(make("span", "kind", event.kind.replaceAll("_", " ")), event.text);
    item.append(text, make("span", "side", clock(event.created)));
    return item;
  }));
}

export function showConnection(state, text) {
  byId("connection").dataset.state = state;
  byId("connection").title = text;
}
