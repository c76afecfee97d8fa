// Polls status.json and shows it. Text from the network is only ever set as text.
"use strict";

const POLL_MILLISECONDS = 1000;
const EVENTS_SHOWN = 100;

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
  return ["in", "good"];
}

function memberRow(member) {
  const [state, className] = stateOf(member);
  const heard = member.seconds_since_heard;
  const roundTrip = member.round_trip_seconds;
  const made = row("td", [
    member.rank === null ? "–" : String(member.rank),
    member.member_id,
    member.address,
    "",
    String(member.completed),
    member.operations_per_second.toFixed(1),
    heard === null ? "never" : `${heard.toFixed(1)} s ago`,
    roundTrip === null ? "" : `${(roundTrip * 1000).toFixed(1)} ms`,
    String(member.joined_at),
  ]);
  made.children[3].append(element("span", state, className));
  return made;
}

function membersTable(run) {
  const table = element("table");
  const head = element("thead");
  head.append(
    row("th", ["rank", "member", "address", "state", "operations", "per second", "heard", "round trip", "joined at"]),
  );
  const body = element("tbody");
  for (const member of run.members) body.append(memberRow(member));
  table.append(head, body);
  const frame = element("div", undefined, "wide");
  frame.append(table);
  return frame;
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
  section.append(heading, membersTable(run), element("h3", "events"), eventList(run));
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
    show(await answer.json());
  } catch (error) {
    const state = document.getElementById("state");
    state.textContent = `the coordinator does not answer (${error.message})`;
    state.className = "bad";
  }
  setTimeout(poll, POLL_MILLISECONDS);
}

poll();
