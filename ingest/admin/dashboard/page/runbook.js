// The runbook: its Markdown as a page, with the commands as this installation needs them.
//
// What it can: headings, paragraphs, lists, tables, fences, and in a line code, strong, emphasis and links.
// It makes elements and texts, never markup.

import { ask, byId, command, make, typed } from "./text.js";

const FENCE = /^\s*```/, HEADING = /^(#{1,4}) (.*)/, ITEM = /^( *)(-|\d+\.) +(.*)/, TABLE = /^\s*\|/, COMMENT = /^<!--/;
const INLINE = /`([^`]+)`|\*\*(.+?)\*\*|\*([^*\s][^*]*)\*|\[((?:[^\]`]|`[^`]*`)+)\]\(([^)]+)\)|<(https?:[^>]+)>/;
const ELSEWHERE = /Where this runbook says[^|]*(\|.*\n)+/; // how a command is typed elsewhere

/** A command as it is typed here. */
const here = (code) => code.replace(/^ingest (?!COMMAND)/gm, `${typed.run} `);

const anchor = (text) => text.toLowerCase().replace(/[^a-z0-9 -]/g, "").replaceAll(" ", "-");

/** The nodes of a text within a line. */
function inline(text) {
  const found = INLINE.exec(text);
  if (!found) return [text];
  const [all, code, strong, emphasis, words, to, address] = found;
  const node = code !== undefined ? command(here(code))
    : strong !== undefined ? make("strong", {}, ...inline(strong))
    : emphasis !== undefined ? make("em", {}, ...inline(emphasis))
    : address !== undefined ? make("a", { href: address, rel: "noreferrer" }, address)
    : linked(words, to);
  return [text.slice(0, found.index), node, ...inline(text.slice(found.index + all.length))];
}

/** A link within the runbook, or to the web; other files are not here, so they are named. */
function linked(words, to) {
  if (/^(#|https?:)/.test(to)) return make("a", { href: to, rel: "noreferrer" }, ...inline(words));
  const file = to.replace(/^(\.\.\/)+/, "").replace(/#.*/, "");
  return make("span", {}, ...inline(words), ...(words.includes(file.split("/").at(-1)) ? [] : [" in ", make("code", {}, file)]));
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((each) => each.trim().replaceAll("\\|", "|"));

function table(lines) {
  const [head, , ...rows] = lines.map(cells);
  const row = (name, texts, has = {}) => make("tr", {}, ...texts.map((text, at) => make(name, { "data-label": head[at], ...has }, ...inline(text))));
  return make("div", { class: "scroll bare", tabindex: 0, role: "region", "aria-label": `Table: ${head.filter(Boolean).join(", ")}` },
    make("table", {}, make("thead", {}, row("th", head, { scope: "col" })), make("tbody", {}, ...rows.map((texts) => row("td", texts)))));
}

/** A list. Lines that are indented deeper than its marks belong to the item before them. */
function list(lines) {
  const items = [];
  const depth = ITEM.exec(lines[0])[1].length;
  for (const line of lines) {
    const mark = ITEM.exec(line);
    if (mark && mark[1].length <= depth) items.push([mark[3]]);
    else items.at(-1).push(line.slice(Math.min(depth + 2, line.length - line.trimStart().length)));
  }
  return make(/^ *-/.test(lines[0]) ? "ul" : "ol", {}, ...items.map((item) => {
    const [only, ...more] = blocks(item);
    return make("li", {}, ...(only.localName === "p" ? only.childNodes : [only]), ...more);
  }));
}

/** The elements of some lines. */
function blocks(lines) {
  const made = [];
  const take = (at, belongs) => {
    let end = at + 1;
    while (end < lines.length && belongs(lines[end])) end++;
    return end;
  };
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const heading = HEADING.exec(line);
    let end = at + 1;
    if (FENCE.test(line)) {
      end = take(at, (each) => !FENCE.test(each));
      made.push(make("pre", { tabindex: 0 }, make("code", {}, here(lines.slice(at + 1, end++).join("\n")))));
    } else if (heading) {
      made.push(make(`h${heading[1].length}`, { id: anchor(heading[2]) }, ...inline(heading[2])));
    } else if (TABLE.test(line)) {
      end = take(at, (each) => TABLE.test(each));
      made.push(table(lines.slice(at, end)));
    } else if (ITEM.test(line)) {
      end = take(at, (each) => ITEM.test(each) || /^ {2,}\S/.test(each) || (/^\S/.test(each) && !starts(each)));
      made.push(list(lines.slice(at, end)));
    } else if (line.trim() && !COMMENT.test(line)) {
      end = take(at, (each) => each.trim() && !starts(each));
      made.push(make("p", {}, ...inline(lines.slice(at, end).map((each) => each.trim()).join(" "))));
    }
    at = end;
  }
  return made;
}

const starts = (line) => [FENCE, HEADING, ITEM, TABLE, COMMENT].some((each) => each.test(line));

async function show() {
  try {
    const [answer, history] = await Promise.all([fetch("/runbook.md"), ask("/history?since=999999999999")]);
    if (!answer.ok) throw new Error("this installation has no runbook");
    Object.assign(typed, history.typed);
    const text = (await answer.text()).replace("http://127.0.0.1:8081/livez", `${location.origin}/livez`)
      .replace("admin port, 8081.", `admin port, ${location.host}.`).replace("sport = :8080", `sport = :${history.listen.split(":").at(-1)}`);
    const known = typed.run !== "ingest"; // else it may be typed in a shell of systemd, too
    byId("runbook").replaceChildren(...blocks((known ? text.replace(ELSEWHERE, "Commands are shown as this service needs them.\n") : text).split("\n")));
    byId("sections").replaceChildren(...[...document.querySelectorAll("#runbook h2")].map((each) => make("a", { href: `#${each.id}` }, each.textContent)));
    if (location.hash) location.replace(location.hash); // the place was not there yet
  } catch (error) {
    byId("runbook").replaceChildren(make("p", {}, `Not available: ${error.message}.`));
  }
}

show();
