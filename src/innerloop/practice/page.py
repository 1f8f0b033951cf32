"""The parts of a report that are the same in every one: its style, and what its numbers do not mean."""

STYLE = """
:root { color-scheme: light; --ink: #1f2328; --faint: #667; --line: #e3e6ea; --ours: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.warning { background: #fff4e0; border: 1px solid #e6a817; border-radius: .5rem; padding: .7rem 1rem; margin: 1rem 0; }
.warning ul, .remarks { margin: .3rem 0; padding-left: 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; font-weight: normal; } td, th { padding: .3rem .6rem .3rem 0; vertical-align: middle; }
.note { font-size: .85rem; color: var(--faint); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars th { width: 34%; overflow-wrap: anywhere; } .bars .number { width: 5rem; }
.bars .ours th, .bars .ours .number { font-weight: 600; }
.bar { position: relative; height: .9rem; background: #e9ecf0; border-radius: .45rem; }
.bar .range { position: absolute; top: 0; bottom: 0; background: #a9b4c0; border-radius: .45rem; }
.bar .point { position: absolute; top: -.15rem; bottom: -.15rem; width: .25rem; margin-left: -.125rem;
  background: var(--ink); }
.ours .range { background: #7fb8dc; } .ours .point { background: var(--ours); }
.counts { width: auto; min-width: 16rem; } .counts .number { text-align: right; padding-right: 0; }
.counts td, .counts th, .skipped td { border-bottom: 1px solid var(--line); }
.counts td:first-child, .skipped td { overflow-wrap: anywhere; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; align-items: flex-start; }
.figures figure { margin: 0; flex: 1 1 18rem; max-width: 34rem; background: white; border-radius: .5rem;
  padding: .6rem; }
.figures img { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
.matrix { width: auto; margin: 0 auto; border-collapse: separate; border-spacing: 1px; font-size: .78rem; }
.matrix th { padding: 0 .4rem; white-space: nowrap; text-align: right; } .matrix small { color: var(--faint); }
.matrix thead th { vertical-align: bottom; padding: .3rem 0; text-align: center; }
.matrix thead span { writing-mode: vertical-rl; text-orientation: sideways; transform: rotate(180deg); }
.matrix td { width: 1.7rem; min-width: 1.3rem; height: 1.7rem; padding: 0; text-align: center;
  box-shadow: inset 0 0 0 1px var(--line); }
figcaption { margin-top: .4rem; font-size: .8rem; color: var(--faint); overflow-wrap: anywhere; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .8rem; }
.gallery figure { margin: 0; background: white; border-radius: .5rem; padding: .5rem; }
.gallery img { width: 100%; aspect-ratio: 1; border-radius: .3rem; }
.gallery b { color: var(--ink); } .gallery em { color: #a33; font-style: normal; }
.support th { width: 11rem; overflow-wrap: anywhere; } .support td { line-height: 0; }
.support img { width: 4.5rem; height: 4.5rem; border-radius: .3rem; margin: .1rem; }
.support small { color: var(--faint); }
@media (max-width: 36rem) {
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .3rem; }
  .support th, .support td, .support tr { display: block; width: auto; } .support th { padding-bottom: 0; }
  .support br { display: none; } .support small { margin-left: .5rem; }
  .support img { width: 15.4%; height: auto; margin: .5%; }
  .bars th { width: 40%; } .matrix { font-size: .7rem; }
}
"""

MEANING = """<h2>What these numbers do not mean</h2>
<ul>
<li>They are about pictures like the labelled ones: the same camera, light, place and season. On others it may be wrong
more often, and just as sure of itself.</li>
<li>Several pictures of one individual, such as one plant or one patient, in a class make the number too good, unless
they are left out together.</li>
<li>A probability is a share of right answers among many pictures, and no certainty about this one.</li>
<li>A picture of something else is called unlike every class only if it looks unlike. That it is not called so proves
nothing.</li>
<li>Of few labelled pictures the intervals are wide; read them, and not the number alone.</li>
<li>This is no medical device. It must not decide about a person's diagnosis or treatment.</li>
</ul>"""

OF_TABLES = (
    MEANING.replace("pictures", "rows")
    .replace("a picture", "a row")
    .replace("A picture", "A row")
    .replace("camera, light, place and season", "instruments, units, place and population")
)
