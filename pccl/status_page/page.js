// Polls status.json and shows it. Text from the network is only ever set as text.
"use strict";

const POLL_MILLISECONDS = 1000;
const EVENTS_SHOWN = 100;
const LINKS_SHOWN = 24;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function row(cellName, texts) {
  const made = element("tr");
  for (const text of texts) made.append(element(cellName, text));
  return made;
}

function stateOf(member) {
  if (!member.is_connected) return ["not connected", "bad"];
  if (member.rank === null) return ["waits to get in", "wait"];
  return member.is_slow ? ["in, slow", "wait"] : ["in", "good"];
}

function milliseconds(seconds) {
  return seconds === null ? "" : `${(1000 * seconds).toFixed(1)} ms`;
}

function rateOrNothing(rate) {
  return rate === null ? "" : rateText(rate);
}

function memberRow(member) {
  const [state, className] = stateOf(member);
  const heard = member.seconds_since_heard;
  const made = row("td", [
    member.rank === null ? "–" : String(member.rank),
    member.member_id,
    member.address,
    "",
    String(member.completed),
    member.operations_per_second.toFixed(1),
    heard === null ? "never" : `${heard.toFixed(1)} s ago`,
    milliseconds(member.round_trip_seconds),
    rateOrNothing(member.link_bytes_per_second),
    `${Math.round(100 * member.waited_for)} %`,
    String(member.recovered_operations),
    String(member.joined_at),
  ]);
  made.children[3].append(element("span", state, className));
  return made;
}

function wideTable(className, titles, rows) {
  const table = element("table", undefined, className);
  const head = element("thead");
  head.append(row("th", titles));
  const body = element("tbody");
  body.append(...rows);
  table.append(head, body);
  const frame = element("div", undefined, "wide");
  frame.append(table);
  return frame;
}

function membersTable(run) {
  return wideTable(
    "members",
    [
      "rank", "member", "address", "state", "operations", "per second", "heard", "round trip",
      "its links", "waited for", "recovered", "joined at",
    ],
    run.members.map(memberRow),
  );
}

function slowMembers(run) {
  const list = element("ul", undefined, "slow");
  for (const member of run.members.filter((member) => member.is_slow))
    list.append(element("li", `rank ${member.rank} (${member.member_id}) is slow: ${member.slow_reason}`));
  return list;
}

function linksTable(run) {
  const ranks = new Map(run.members.map((member) => [member.member_id, member.rank]));
  const name = (id) => `${ranks.get(id) ?? "–"} (${id})`;
  const links = [...run.links].sort((a, b) => b.bytes_per_second - a.bytes_per_second);
  const table = wideTable(
    "links",
    ["from", "to", "now", "while busy", "round trip", "sockets replaced"],
    links.slice(0, LINKS_SHOWN).map((link) =>
      row("td", [
        name(link.from), name(link.to), rateText(link.bytes_per_second),
        rateOrNothing(link.busy_bytes_per_second), milliseconds(link.round_trip_seconds),
        String(link.replaced_sockets),
      ]),
    ),
  );
  if (links.length > LINKS_SHOWN)
    table.append(element("p", `and ${links.length - LINKS_SHOWN} more in status.json`, "figures"));
  return table;
}

// Run -> its plan, asked for while its box is ticked; a reason where there is none.
const plans = new Map();

function planBox(run) {
  const label = element("label", undefined, "plan");
  const box = element("input");
  box.type = "checkbox";
  box.checked = plans.has(run.name);
  box.addEventListener("change", () => {
    if (box.checked) plans.set(run.name, { reason: "planning" });
    else plans.delete(run.name);
    refreshPlans();
  });
  label.append(box, " trees of the plan for these links");
  return label;
}

let isPlanning = false; // a plan may take seconds, the status does not wait for it

async function refreshPlans() {
  if (isPlanning) return;
  isPlanning = true;
  for (const name of plans.keys()) {
    let plan;
    try {
      const answer = await fetch(`plan.json?run=${encodeURIComponent(name)}`, { cache: "no-store" });
      plan = await answer.json();
    } catch (error) {
      plan = { reason: `the coordinator does not answer (${error.message})` };
    }
    if (plans.has(name)) plans.set(name, plan);
  }
  isPlanning = false;
}

function linksPart(run) {
  const answer = plans.get(run.name);
  const plan = answer !== undefined && answer.trees !== undefined ? answer : null;
  const map = topologyMap(run, plan);
  if (map === null || run.links.length === 0) return [];
  const figure = element("figure");
  figure.append(map[0], element("figcaption", answer?.reason ? `No plan: ${answer.reason}.` : map[1]));
  return [element("h3", "links"), planBox(run), figure, linksTable(run)];
}

function eventList(run) {
  const list = element("ol");
  for (const event of run.events.slice(-EVENTS_SHOWN).reverse()) {
    const item = element("li");
    const when = new Date(event.unix_seconds * 1000);
    const time = element("time", when.toLocaleTimeString());
    time.dateTime = when.toISOString();
    item.append(time, event.text);
    list.append(item);
  }
  return list;
}

function runSection(run) {
  const section = element("section");
  section.dataset.run = run.name;
  const size = run.members.filter((member) => member.rank !== null).length;
  const heading = element("h2", run.name + " ");
  heading.append(
    element(
      "span",
      `${size} in quorum ${run.quorum_id}, since operation ${run.first_operation}; ` +
        `term ${run.term}; revision ${run.revision}`,
      "figures",
    ),
  );
  section.append(
    heading, membersTable(run), slowMembers(run), ...linksPart(run),
    element("h3", "events"), eventList(run),
  );
  return section;
}

function show(status) {
  document.getElementById("address").textContent = status.address;
  const state = document.getElementById("state");
  state.textContent = status.failure || "running";
  state.className = status.failure ? "bad" : "good";
  const runs = status.runs.map(runSection);
  if (runs.length === 0) runs.push(element("p", "No member has joined yet."));
  document.getElementById("runs").replaceChildren(...runs);
  document.getElementById("counters").textContent =
    `${status.messages} messages; ${status.malformed_messages} malformed, ` +
    `${status.refused_members} members and ${status.refused_connections} connections refused; ` +
    `${status.writes} writes to ${status.database}, slowest ` +
    `${(status.write_seconds_max * 1000).toFixed(1)} ms`;
}

async function poll() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const status = await answer.json();
    refreshPlans();
    show(status);
  } catch (error) {
    const state = document.getElementById("state");
    state.textContent = `the coordinator does not answer (${error.message})`;
    state.className = "bad";
  }
  setTimeout(poll, POLL_MILLISECONDS);
}

poll();
