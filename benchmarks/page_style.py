"""How the project's HTML pages look, the demo's and the benchmarks': colours for light and dark, tables, bars."""

BASE_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --ink: #1d2125; --soft: #63707d; --line: #dfe3e7; --card: #fff;
  --accent: #2f6fb3; --good: #1c7c45; --bad: #c22f35 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e7eaed; --soft: #9aa5b1; --line: #30363d;
  --card: #1c2126; --accent: #6aa9ea; --good: #56c984; --bad: #ff7b7f } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { margin: 0 0 .5rem; font-size: 2rem } h1 small { color: var(--soft); font-weight: 400; font-size: 1.2rem }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.3rem } h3 { margin: 1.6rem 0 .5rem; font-size: 1rem; font-weight: 600 }
p { max-width: 75ch } .note { color: var(--soft); font-size: .9rem; margin: .5rem 0 }
.bars { display: grid; gap: .4rem; margin: 1rem 0 }
.bar { display: grid; grid-template-columns: 15.5rem 1fr 6rem; align-items: center; gap: .8rem; font-size: .92rem }
.bar b { font-variant-numeric: tabular-nums; white-space: nowrap }
.track { display: flex; height: 1.15rem; background: var(--line); border-radius: 4px }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; font-size: .92rem; margin: .5rem 0 }
.key { display: inline-block; width: 1rem; height: 1rem; border-radius: 3px; vertical-align: -.15rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .92rem; margin: .75rem 0 }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600 } .n { text-align: right; font-variant-numeric: tabular-nums }
.pass { color: var(--good); font-weight: 600 } .fail { color: var(--bad); font-weight: 700 }
"""
