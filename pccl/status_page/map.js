// Draws who is in and what flows: members on a circle, an arrow for each direction of a link.
"use strict";

const MAP_WIDTH = 720;
const MAP_HEIGHT = 460;
const ARROWS_MAX = 300; // more would be a blot; slow links are among them
const NAMED_MEMBERS_MAX = 20; // above, their names would cover each other
const LABELLED_ARROWS_MAX = 12;
// As pccl status and the coordinator's log have it: csrc/membership/link_rates.h.
const SLOW_SHARE = 0.5;

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function rateText(bytesPerSecond) {
  const steps = ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"];
  let value = bytesPerSecond;
  let step = 0;
  while (value >= 999.5 && step < steps.length - 1) {
    value /= 1000;
    step += 1;
  }
  return `${value.toFixed(value < 10 && step > 0 ? 1 : 0)} ${steps[step]}`;
}

function median(values) {
  if (values.length === 0) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

function isSlow(link, usual) {
  return link.busy_bytes_per_second !== null && link.busy_bytes_per_second < SLOW_SHARE * usual;
}

function usualRate(links) {
  const known = links.map((link) => link.busy_bytes_per_second).filter((rate) => rate !== null);
  return known.length < 3 ? 0 : median(known);
}

// Member id -> where it stands; rank 0 at the top, then clockwise.
function places(members) {
  const all = new Map();
  const across = members.length <= NAMED_MEMBERS_MAX ? 0.33 : 0.45; // names need room
  members.forEach((member, index) => {
    const angle = (2 * Math.PI * index) / members.length - Math.PI / 2;
    all.set(member.member_id, {
      member,
      angle,
      x: MAP_WIDTH / 2 + across * MAP_WIDTH * Math.cos(angle),
      y: MAP_HEIGHT / 2 + 0.41 * MAP_HEIGHT * Math.sin(angle),
    });
  });
  return all;
}

function linkTitle(link, from, to) {
  const parts = [`rank ${from.member.rank} to rank ${to.member.rank}: ${rateText(link.bytes_per_second)}`];
  if (link.busy_bytes_per_second !== null) parts.push(`${rateText(link.busy_bytes_per_second)} while busy`);
  if (link.round_trip_seconds !== null) parts.push(`round trip ${(1000 * link.round_trip_seconds).toFixed(1)} ms`);
  if (link.replaced_sockets > 0) parts.push(`${link.replaced_sockets} sockets replaced`);
  return parts.join(", ");
}

// Bent to its right, so that both directions can be seen; it ends where the circle of `to` begins.
function arrow(link, from, to, nodeRadius, width, className) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy);
  const bend = Math.min(0.12 * length, 30);
  const middle = { x: (from.x + to.x) / 2 - (bend * dy) / length, y: (from.y + to.y) / 2 + (bend * dx) / length };
  const [ex, ey] = [to.x - middle.x, to.y - middle.y];
  const short = (nodeRadius + 4 + width) / Math.hypot(ex, ey);
  const end = { x: to.x - short * ex, y: to.y - short * ey };
  const path = drawn("path", {
    d: `M${from.x.toFixed(1)} ${from.y.toFixed(1)}Q${middle.x.toFixed(1)} ${middle.y.toFixed(1)} ${end.x.toFixed(1)} ${end.y.toFixed(1)}`,
    "stroke-width": width.toFixed(1),
    class: className,
    "marker-end": `url(#${className.replace(" ", "-")})`,
  });
  path.append(drawn("title", {}, linkTitle(link, from, to)));
  // Near the end of the sender, where fewer arrows cross.
  const label = drawn(
    "text",
    { x: 0.45 * from.x + 0.4 * middle.x + 0.15 * to.x, y: 0.45 * from.y + 0.4 * middle.y + 0.15 * to.y + 4, class: "rate" },
    rateText(link.bytes_per_second),
  );
  return [path, label];
}

function markers(treeCount) {
  const all = drawn("defs", {});
  const trees = Array.from({ length: treeCount }, (_, index) => `tree-${index}`);
  for (const name of ["link", "link-slow", "full", ...trees]) {
    const marker = drawn("marker", {
      id: name, viewBox: "0 0 8 8", refX: 4, refY: 4, orient: "auto",
      markerWidth: 7, markerHeight: 7, markerUnits: "userSpaceOnUse",
    });
    marker.append(drawn("path", { d: "M0 0L8 4L0 8z", class: `head ${name}` }));
    all.append(marker);
  }
  return all;
}

// The trees of a plan, each in its colour and a little more bent than the one before it.
function treeArrows(plan, at, nodeRadius) {
  const made = [];
  plan.trees.forEach((tree, index) => {
    for (const [sender, receiver] of tree.edges) {
      if (!at.has(sender) || !at.has(receiver)) continue; // the plan is a few seconds old
      const [from, to] = [at.get(sender), at.get(receiver)];
      made.push(treeArrow(from, to, { nodeRadius, index, share: tree.share }));
    }
  });
  return made;
}

function treeArrow(from, to, { nodeRadius, index, share }) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy);
  const bend = 10 + 9 * index;
  const middle = { x: (from.x + to.x) / 2 - (bend * dy) / length, y: (from.y + to.y) / 2 + (bend * dx) / length };
  const [ex, ey] = [to.x - middle.x, to.y - middle.y];
  const short = (nodeRadius + 6) / Math.hypot(ex, ey);
  const path = drawn("path", {
    d: `M${from.x.toFixed(1)} ${from.y.toFixed(1)}Q${middle.x.toFixed(1)} ${middle.y.toFixed(1)} ` +
      `${(to.x - short * ex).toFixed(1)} ${(to.y - short * ey).toFixed(1)}`,
    "stroke-width": "2", class: `tree tree-${index}`, "marker-end": `url(#tree-${index})`,
  });
  path.append(drawn("title", {}, `tree ${index + 1}: ${Math.round(100 * share)} % of the bytes`));
  return path;
}

// What the plan waits for: a link, or one member's own limit.
function bottleneck(plan, at, nodeRadius) {
  if (!plan.bottleneck.every((id) => at.has(id))) return [];
  const [from, to] = plan.bottleneck.map((id) => at.get(id));
  if (to === undefined) return [drawn("circle", { cx: from.x, cy: from.y, r: nodeRadius + 5, class: "full" })];
  const link = { bytes_per_second: 0, busy_bytes_per_second: null, round_trip_seconds: null, replaced_sockets: 0 };
  const [path] = arrow(link, from, to, nodeRadius, 4, "full");
  path.replaceChildren(drawn("title", {}, "full all the time: this link bounds the plan"));
  return [path];
}

function planCaption(plan, at) {
  const names = plan.bottleneck.map((id) => `rank ${at.get(id)?.member.rank ?? "?"}`);
  const shown = Math.round(100 * plan.trees.reduce((sum, tree) => sum + tree.share, 0));
  return `all_reduce of ${Math.round(plan.bytes / 2 ** 20)} MiB: ${plan.algorithm}, ${plan.seconds.toPrecision(3)} s, ` +
    `${Math.round(100 * plan.fraction_of_bound)} % of the bound. Coloured: ${plan.trees.length} of ${plan.tree_count} trees, ` +
    `${shown} % of the bytes, results down. Marked: ${names.join(" to ")}, which is full all the time.`;
}

function node(place, radius, isNamed) {
  const { member, x, y, angle } = place;
  const state = !member.is_connected ? "away" : member.is_slow ? "slow" : "in";
  const group = drawn("g", { class: `member ${state}` });
  group.append(
    drawn("circle", { cx: x, cy: y, r: radius }),
    drawn("text", { x, y: y + 4, class: "rank" }, String(member.rank)),
    drawn("title", {}, `rank ${member.rank}, ${member.member_id}, ${member.address}` +
      (member.is_slow ? `; slow: ${member.slow_reason}` : "")),
  );
  if (!isNamed) return group;
  const side = Math.cos(angle);
  const anchor = Math.abs(side) < 0.3 ? "middle" : side > 0 ? "start" : "end";
  const out = radius + 8;
  const name = drawn("text", {
    x: x + (anchor === "middle" ? 0 : out * Math.sign(side)),
    y: y + 4 + (anchor === "middle" ? (out + 6) * Math.sign(Math.sin(angle)) : 0),
    "text-anchor": anchor, class: "name",
  }, member.member_id);
  group.append(name);
  return group;
}

// Of a run's members and links, with the trees of `plan` if it is not null; null where there is
// nothing to draw.
function topologyMap(run, plan) {
  const members = run.members.filter((member) => member.rank !== null);
  if (members.length < 2) return null;
  const at = places(members);
  const all = run.links.filter((link) => at.has(link.from) && at.has(link.to));
  const usual = usualRate(all);
  // Slow ones come last, so they lie on top.
  const links = all
    .sort((a, b) => isSlow(b, usual) - isSlow(a, usual) || b.bytes_per_second - a.bytes_per_second)
    .slice(0, ARROWS_MAX)
    .reverse();
  const fastest = Math.max(1, ...links.map((link) => link.bytes_per_second));
  const widest = Math.max(1.2, Math.min(5, 120 / links.length));
  const nodeRadius = Math.max(9, Math.min(18, 320 / members.length));
  const svg = drawn("svg", {
    viewBox: `0 0 ${MAP_WIDTH} ${MAP_HEIGHT}`, role: "img",
    class: "map" + (links.length > 100 ? " dense" : "") + (members.length > 32 ? " crowded" : ""),
    "aria-label": `${members.length} members, ${all.length} links`,
  });
  svg.append(markers(plan === null ? 0 : plan.trees.length));
  if (plan !== null) svg.classList.add("planned");
  const labels = [];
  for (const link of links) {
    const slow = isSlow(link, usual);
    const width = 0.5 + widest * Math.sqrt(link.bytes_per_second / fastest);
    const [path, label] = arrow(link, at.get(link.from), at.get(link.to), nodeRadius, width, slow ? "link slow" : "link");
    svg.append(path);
    if (links.length <= LABELLED_ARROWS_MAX && link.bytes_per_second >= 1) labels.push(label);
  }
  if (plan !== null) svg.append(...bottleneck(plan, at, nodeRadius), ...treeArrows(plan, at, nodeRadius));
  for (const place of at.values()) svg.append(node(place, nodeRadius, members.length <= NAMED_MEMBERS_MAX));
  svg.append(...labels);
  const shown = links.length < all.length ? `${links.length} of ${all.length} links. ` : "";
  if (plan !== null) return [svg, planCaption(plan, at)];
  const caption = `${shown}Wider: more bytes a second, ${rateText(fastest)} the widest.` +
    (usual > 0 ? ` Red: less than half of the usual ${rateText(usual)} while busy.` : "");
  return [svg, caption];
}
