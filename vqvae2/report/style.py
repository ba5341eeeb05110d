"""The style sheet of the report: light or dark, readable, printable, without anything from elsewhere."""

__all__ = ["CSS"]

CSS = """
:root { --ink: #1c2733; --soft: #5b6875; --line: #dfe5ea; --wash: #f5f7f9; --blue: #0b5c94; --amber: #8a5300;
        --paper: #fff; --warn: #fff7e8; --good: #eefaf4; --fail: #fdeeeb; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { overflow-wrap: break-word; margin: 0; color: var(--ink); background: var(--paper);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 36px; }
h1 { margin: 0; font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header p { margin: 6px 0 0; color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 18px; padding: 9px 0;
      border: solid var(--line); border-width: 1px 0; font-size: 14px; }
a { color: var(--blue); text-decoration: none; }
a:hover { text-decoration: underline; }
section { margin-top: 36px; }
h2 { margin: 0 0 12px; font-size: 21px; letter-spacing: -0.005em; }
h3 { margin: 26px 0 8px; font-size: 15px; }
code, pre { font: 13px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 0; padding: 12px 16px; background: var(--wash); border-radius: 6px; white-space: pre-wrap;
      overflow-wrap: anywhere; }
.cards { margin-top: 16px; display: grid; grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: 12px; }
.card { padding: 12px 14px; background: var(--wash); border-radius: 8px; }
.card h3 { margin: 0; font-size: 12.5px; font-weight: 600; color: var(--soft); }
.card b { display: block; margin: 2px 0 3px; font-size: 25px; line-height: 1.2; font-weight: 650;
          font-variant-numeric: tabular-nums; }
.card span { display: block; font-size: 12px; line-height: 1.4; color: var(--soft); }
.box { margin-top: 16px; padding: 12px 18px; border-left: 4px solid #9fb0bf; background: var(--wash);
       border-radius: 0 6px 6px 0; }
.box h3 { margin: 0; }
.box ul { margin: 6px 0 0; }
.box p { margin: 4px 0 0; }
.box em { margin-left: 6px; font-style: normal; font-weight: 700; }
.warn { border-color: #e09a2b; background: var(--warn); }
.warn h3 { color: var(--amber); }
.good { border-color: #2f9e6b; background: var(--good); }
.fail { border-color: #c8442f; background: var(--fail); }
dl { margin: 0; }
dt { margin-top: 10px; font-weight: 600; font-size: 14px; }
dd { margin: 2px 0 0; font-size: 14px; color: var(--soft); }
ul { margin: 14px 0 0; padding-left: 20px; }
li + li { margin-top: 3px; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
.scroll + .scroll, .note + .scroll { margin-top: 20px; }
caption { padding: 0 0 6px; color: var(--soft); font-size: 12.5px; text-align: left; }
.narrow { max-width: 480px; }
th { padding: 6px 10px; border-bottom: 1.5px solid #b9c4ce; color: var(--soft); font-weight: 600; font-size: 12.5px;
     line-height: 1.3; text-align: right; vertical-align: bottom; }
td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: break-word; }
th:first-child, td:first-child { padding-left: 0; }
.naive td { color: var(--soft); }
.note { margin: 8px 0 0; font-size: 13px; color: var(--soft); }
.hashes td:last-child { font: 12px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
figure { margin: 26px 0 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff; }
figure .scroll { margin: 0; }
@media screen and (max-width: 640px) { figure img { min-width: 640px; max-width: none; } }
figcaption { margin-top: 8px; font-size: 13px; color: var(--soft); }
figcaption b { color: var(--ink); font-weight: 600; }
footer p { margin: 44px 0 28px; padding-top: 12px; border-top: 1px solid var(--line); font-size: 12.5px;
           color: var(--soft); }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ink: #e3e8ed; --soft: #a3b0bc; --line: #36424e; --wash: #1f2831; --blue: #7cc0f2;
          --amber: #f0bd6a; --paper: #161c22; --warn: #33291a; --good: #18302a; --fail: #3a211d; }
}
@media print {
  @page { margin: 16mm 14mm; }
  :root { color-scheme: light; --ink: #1c2733; --soft: #5b6875; --line: #dfe5ea; --wash: #f5f7f9; --blue: #0b5c94;
          --amber: #8a5300; --paper: #fff; --warn: #fff7e8; --good: #eefaf4; --fail: #fdeeeb; }
  body { font-size: 10.5pt; }
  nav { display: none; }
  header, main, footer { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; }
  figure, .card, .box, tr, pre { break-inside: avoid; }
  .scroll { overflow: visible; break-inside: avoid; }
  table { font-size: 8.5pt; }
  th { font-size: 8pt; }
  th, td { padding: 4px 5px; white-space: normal; }
  .card, .box, pre { border: 1px solid var(--line); }
  a { color: inherit; }
}
"""
"""Style sheet, inlined in the page."""
