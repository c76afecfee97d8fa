// Polls status.json and shows it. Text from the network is only ever set as text.
"use strict";

const POLL_MILLISECONDS = 1000;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 720;
const HEIGHT = 200;
const MARGIN = 36;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function table(className, titles, rows) {
  const made = element("table", undefined, className);
  const head = element("thead");
  const titleRow = element("tr");
  for (const title of titles) titleRow.append(element("th", title));
  head.append(titleRow);
  const body = element("tbody");
  for (const cells of rows) {
    const row = element("tr");
    for (const cell of cells) row.append(cell instanceof Node ? cell : element("td", String(cell)));
    body.append(row);
  }
  made.append(head, body);
  const frame = element("div", undefined, "wide");
  frame.append(made);
  return frame;
}

function addressCell(address) {
  const made = element("td", address.slice(0, 12), "address");
  made.title = address;
  return made;
}

function stateCell(text, className) {
  const cell = element("td");
  cell.append(element("span", text, className));
  return cell;
}

function fill(id, title, ...parts) {
  document.getElementById(id).replaceChildren(element("h3", title), ...parts);
}

function numbersOf(steps, name) {
  return steps
    .filter((step) => typeof step.metrics[name] === "number" && isFinite(step.metrics[name]))
    .map((step) => [step.step, step.metrics[name]]);
}

// One picture of up to two series over the steps; each is a name in the trainer's metrics.
function curve(steps, names) {
  const series = names.map((name) => numbersOf(steps, name));
  const points = series.flat();
  if (points.length === 0) return element("p", "nothing yet", "figures");
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  const low = Math.min(0, ...ys);
  const high = Math.max(...ys, low + 1e-9);
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const x = (step) => MARGIN + ((step - first) / Math.max(last - first, 1)) * (WIDTH - 2 * MARGIN);
  const y = (value) => HEIGHT - MARGIN / 2 - ((value - low) / (high - low)) * (HEIGHT - MARGIN);
  const made = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", role: "img" });
  for (const value of [low, (low + high) / 2, high]) {
    made.append(drawn("line", { class: "axis", x1: MARGIN, x2: WIDTH - MARGIN, y1: y(value), y2: y(value) }));
    made.append(drawn("text", { x: 4, y: y(value) + 4 }, value.toPrecision(3)));
  }
  made.append(drawn("text", { x: MARGIN, y: HEIGHT - 4 }, `step ${first}`));
  made.append(drawn("text", { x: WIDTH - MARGIN, y: HEIGHT - 4, "text-anchor": "end" }, `step ${last}`));
  series.forEach((found, index) => {
    if (found.length === 0) return;
    const kind = index === 0 ? "first" : "second";
    made.append(drawn("polyline", { class: kind, points: found.map((p) => `${x(p[0])},${y(p[1])}`).join(" ") }));
    const label = `${names[index]} ${found[found.length - 1][1].toPrecision(3)}`;
    made.append(drawn("text", { class: kind, x: MARGIN + 6, y: 14 + 14 * index }, label));
  });
  return made;
}

function rolloutsPart(status) {
  const files = status.files;
  const told = Object.entries(status.reasons).map(([reason, count]) => `${reason} ${count}`).join(", ");
  const parts = [
    element(
      "p",
      `${files.accepted} files accepted, ${files.pending} pending, ${files.refused} refused, ` +
        `${files.undecided} undecided` + (told ? ` (${told})` : ""),
    ),
  ];
  if (status.refused.length > 0)
    parts.push(
      table(
        "refused",
        ["worker", "step", "reason", "what was found"],
        status.refused.map((file) => [
          addressCell(file.address), file.step, stateCell(file.reason, "bad"), file.detail,
        ]),
      ),
    );
  fill("rollouts", "rollouts", ...parts);
}

function workersPart(status) {
  fill(
    "workers", "balances",
    table(
      "workers",
      ["worker", "state", "accepted", "refused", "work units", "stake", "pending", "claimable", "paid"],
      status.workers.map((worker) => {
        const state = stateCell(worker.is_banned ? "banned" : "in", worker.is_banned ? "bad" : "good");
        state.title = worker.ban_reason;
        return [
          addressCell(worker.address), state, worker.files.accepted ?? 0, worker.files.refused ?? 0,
          worker.units, worker.stake, worker.pending, worker.claimable, worker.paid,
        ];
      }),
    ),
  );
}

function validatorsPart(status) {
  fill(
    "validators", "validators",
    table(
      "validators",
      ["validator", "state", "verdicts", "heard"],
      status.validators.map((validator) => [
        addressCell(validator.address),
        stateCell(validator.is_present ? "present" : "silent", validator.is_present ? "good" : "bad"),
        validator.verdicts, `${validator.seconds_since_heard.toFixed(0)} s ago`,
      ]),
    ),
  );
}

function versionsPart(status) {
  const rows = [...status.versions].reverse().slice(0, 12).map((version) => {
    const seconds = Object.values(version.seconds);
    const mean = seconds.reduce((sum, one) => sum + one, 0) / Math.max(seconds.length, 1);
    return [
      `version ${version.version}`, seconds.length,
      seconds.length ? `${mean.toFixed(2)} s` : "", seconds.length ? `${Math.max(...seconds).toFixed(2)} s` : "",
      new Date(version.unix_seconds * 1000).toLocaleTimeString(),
    ];
  });
  fill("versions", "weights, and how long they took to come",
    table("versions", ["weights", "came to", "mean", "slowest", "published"], rows));
}

function eventsPart(status) {
  const list = element("ol");
  for (const event of [...status.events].reverse()) {
    const item = element("li");
    const when = new Date(event.unix_seconds * 1000);
    const time = element("time", when.toLocaleTimeString());
    time.dateTime = when.toISOString();
    item.append(time, event.text);
    list.append(item);
  }
  fill("events", "events", list);
}

function show(status) {
  document.getElementById("run").textContent = status.run;
  const state = document.getElementById("state");
  state.textContent = status.ledger.is_balanced ? "running" : "the ledger does not add up";
  state.className = status.ledger.is_balanced ? "good" : "bad";
  const newest = status.versions.at(-1);
  document.getElementById("figures").textContent =
    `step ${status.step}; files are taken for steps ${status.open_steps.join(", ")}; ` +
    (newest ? `weights of version ${newest.version}` : "no weights yet");
  fill("reward", "reward", curve(status.steps, ["reward", "held_out"]));
  fill("staleness", "versions behind, of the rollouts that were trained on", curve(status.steps, ["staleness"]));
  rolloutsPart(status);
  workersPart(status);
  validatorsPart(status);
  versionsPart(status);
  eventsPart(status);
  document.getElementById("ledger").textContent =
    `ledger: ${status.ledger.rows} rows, head ${status.ledger.head.slice(0, 16)}…, ${status.ledger.burnt} coins burnt`;
}

async function poll() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    const state = document.getElementById("state");
    state.textContent = `the coordinator does not answer (${error.message})`;
    state.className = "bad";
  }
  setTimeout(poll, POLL_MILLISECONDS);
}

poll();
