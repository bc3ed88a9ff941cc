"""The style of the HTML report: light and dark, from a phone to a wall."""

STYLE = """
:root{--page:#f6f7f5;--card:#fff;--ink:#1c2430;--soft:#5d6877;--line:#dfe3e1;
--a:#0f8b8d;--b:#6d4bc3;--c:#d98e04;--d:#d1495b;--e:#7a8594;--f:#9fb3c8;--good:#12805c;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--page:#12161b;--card:#1a2027;--ink:#e8ecf0;--soft:#9aa7b5;
--line:#2c353f;--a:#3cc6c0;--b:#b39dfa;--c:#f2b84b;--d:#ff7b8a;--e:#8d99a8;--f:#4d6478;
--good:#4cd3a0;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1000px;margin:0 auto;padding:28px 20px 40px}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0 .3rem;text-wrap:balance}
h2{font-size:1.05rem;margin:0}
.sub,footer,figcaption span{color:var(--soft)}
.sub{margin:0;overflow-wrap:anywhere}
.verdict{display:inline-block;margin:0;padding:.15rem .75rem;border-radius:99px;font-size:.9rem;
font-weight:600;border:1.5px solid}
.good{color:var(--good)}.bad{color:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin:22px 0}
.cards div,figure,section:not(.cards),details{background:var(--card);border:1px solid var(--line);
border-radius:12px}
.cards div{padding:12px 16px}
.cards b{display:block;font-size:1.45rem;line-height:1.3;font-variant-numeric:tabular-nums;
white-space:nowrap}
.cards span{color:var(--soft);font-size:.85rem;line-height:1.3;display:block}
.says{margin:0 0 14px;padding:.6rem 1rem;border-left:4px solid var(--c);background:var(--card);
border-radius:0 8px 8px 0}
figure{margin:0 0 16px;padding:16px 18px 8px}
figcaption{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:baseline;margin-bottom:8px}
figcaption span{font-size:.88rem}
figcaption ul{display:flex;flex-wrap:wrap;gap:2px 16px;list-style:none;margin:0 0 0 auto;padding:0;
font-size:.9rem}
.key{display:inline-block;width:18px;height:0;border-top:3px solid;margin-right:6px;
vertical-align:middle}
.key.dashed{border-top-style:dashed}
.key.area{height:12px;border:0;border-radius:3px;background:currentColor}
i.a{color:var(--a)}i.b{color:var(--b)}i.c{color:var(--c)}i.d{color:var(--d)}i.e{color:var(--e)}
i.f{color:var(--f)}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--ink);fill-opacity:.8;font-size:12px;font-family:inherit;paint-order:stroke;
stroke:var(--card);stroke-width:3px;stroke-opacity:.8}
.grid{stroke:var(--line);stroke-width:1}
.line{fill:none;stroke-width:2.5;stroke-linejoin:round;stroke-linecap:round}
.dashed{stroke-dasharray:1 6;stroke-width:3.5}
.line.a{stroke:var(--a)}.line.b{stroke:var(--b)}.line.c{stroke:var(--c)}.line.d{stroke:var(--d)}
.fill.a,.dot.a{fill:var(--a)}.fill.b,.dot.b{fill:var(--b)}.fill.c,.dot.c{fill:var(--c)}
.fill.d,.dot.d{fill:var(--d)}.fill.e,.dot.e{fill:var(--e)}.fill.f,.dot.f{fill:var(--f)}
.fill{fill-opacity:.75}.fill.f{fill-opacity:.38}
.tip{fill:var(--ink);fill-opacity:0}.tip:hover{fill-opacity:.08}
section:not(.cards){padding:16px 18px;margin-bottom:16px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:0 16px}
table{width:100%;border-collapse:collapse;font-size:.93rem;margin-top:6px}
tr{border-bottom:1px solid var(--line);break-inside:avoid}
tr:last-child{border-bottom:0}
th{font-weight:400;text-align:left;color:var(--soft);padding:5px 12px 5px 0;overflow-wrap:anywhere}
td{text-align:right;padding:5px 0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.columns{columns:2 280px;column-gap:40px}
.columns table,.columns tbody{display:block}
.columns tr{display:flex;justify-content:space-between}
details{padding:12px 18px;margin-bottom:16px}
summary{cursor:pointer;font-weight:600}
footer{font-size:.88rem;margin-top:24px}
@media(max-width:600px){main{padding:18px 12px 30px}h1{font-size:1.25rem}
figure,section:not(.cards),details{padding:12px}figcaption ul{margin-left:0}
.cards{grid-template-columns:1fr 1fr;gap:8px}.cards b{font-size:1.2rem}
svg text{font-size:21px}.line{stroke-width:4}}
@media print{body{background:#fff}figure,section,details{break-inside:avoid}}
"""
