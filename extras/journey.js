'use strict'
const data = JSON.parse(document.getElementById('data').textContent)
const { tokens, steps, patterns, curves } = data
const T = tokens.length, L = data.layers, H = data.heads
const $ = id => document.getElementById(id)
const names = patterns.map(pattern => pattern.name)
const maps = steps.map(step => Uint8Array.from(atob(step.attention), c => c.charCodeAt(0)))
const MOST_BITS = 8             // of a column
const mean_nats = bits => bits.reduce((a, b) => a + b, 0) * Math.log(2) / (T - 1)
const best_of = values => values.indexOf(Math.max(...values))
let at = steps.length - 1
// At first: the token at which the last layer helps most, and the head that best deserves its name
let token = best_of(steps[at].lens[L].slice(0, -1).map(([p], i) => p - steps[at].lens[L - 1][i][0]))
let head = best_of(steps[at].heads.flat().map(
  ({ name, scores }) => name ? scores[names.indexOf(name)] : 0))

// ---- helpers
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...children)
  return element
}
function percent(p) {
  if (p < .001) return '<0.1%'
  return (100 * p).toFixed(p < .0995 ? 1 : 0) + '%'
}
const text = i => tokens[i].bytes || tokens[i].text
const quoted = i => `‘${text(i)}’`
const weight = (h, i, j) => maps[at][(h * T * (T + 1) + i * (i + 1)) / 2 + j] / 255
const head_name = h => `Layer ${Math.floor(h / H) + 1}, head ${h % H + 1}`
function meter(share, mark) {
  const bar = make('span', { className: 'meter' }, make('b', { style: `width: ${100 * share}%` }))
  if (mark !== undefined) bar.append(make('i', { style: `left: ${100 * mark}%` }))
  return bar
}
// A button for each token, which chooses it. It is shown while the mouse is over it, too.
function token_buttons(parent, fill) {
  for (let i = 0; i < T; i++) {
    const button = make('button', { type: 'button', tabIndex: -1, onclick: () => choose(i) })
    fill(button, i)
    button.onmouseenter = () => show_token(i)
    parent.append(button)
  }
  parent.onmouseleave = () => show_token(token)
}
function mark(parent, i) {
  [...parent.children].forEach((child, j) => child.classList.toggle('chosen', i === j))
}

// ---- what stays
function build() {
  $('about').textContent = `${data.model}: ${L} layers of ${H} heads. `
  $('pieces').textContent = `Here ${data.prompt.length} characters become ${T - 1} tokens, after `
    + `${quoted(0)}, which stands between two texts. A dot stands for a space.`
  token_buttons($('tokens'), (button, i) => {
    const { id, bytes, part_of, text: label } = tokens[i]
    button.setAttribute('role', 'radio')
    button.append(make('span', { className: bytes ? 'bytes' : '' }, bytes || label))
    button.append(make('small', {}, String(id) + (bytes ? `, of ${part_of.trim()}` : '')))
    button.onfocus = () => choose(i)
  })
  $('tokens').onkeydown = event => {
    const to = { ArrowLeft: token - 1, ArrowUp: token - 1, ArrowRight: token + 1,
                 ArrowDown: token + 1, Home: 0, End: T - 1 }[event.key]
    if (to === undefined) return
    event.preventDefault()
    $('tokens').children[Math.min(T - 1, Math.max(0, to))].focus()
  }
  $('heads').style.gridTemplateColumns = `repeat(${H}, minmax(4.2rem, 1fr))`
  for (let h = 0; h < L * H; h++) {
    if (h % H === 0) $('heads').append(make('small', {}, `layer ${h / H + 1}`))
    const canvas = make('canvas', { width: T, height: T })
    const square = make('span', { className: 'square' }, canvas, make('i'))
    const button = make('button', { type: 'button', className: 'head' }, square, make('span'))
    button.onclick = () => { head = h; draw() }
    $('heads').append(button)
  }
  token_buttons($('looks'), (button, i) => button.append(text(i), make('small')))
  token_buttons($('surprise'), (button, i) => {
    const column = make('span', { className: 'column' }, make('b'))
    if (data.draws && i && data.draws[i - 1] > 0) column.append(make('i'))
    button.append(column, text(i), make('small'))
  })
  $('measured').textContent = data.measured
  $('naming').textContent = `A head gets a name if its score is at least `
    + `${percent(data.threshold)} and ${data.times_even} times that of even attention.`
    + ' The others do something else.'
  $('draws').hidden = $('floor').hidden = !data.draws
  $('other_text').hidden = !data.is_other_text
  $('step').max = at
  $('step').value = at
  $('step').oninput = () => { at = Number($('step').value); draw() }
  const alone = steps.length === 1
  $('step').hidden = alone
  $('step_label').hidden = $('step_output').hidden = steps[at].step === null
  $('alone').hidden = steps[at].step !== null
  $('journey').hidden = alone && !curves.train_loss?.length
}

// ---- what depends on the token
function choose(i) {
  token = i
  show_token(i)
  const row = $('tokens'), button = row.children[i]       // on a phone, the row scrolls sideways
  row.scrollTo({ left: button.offsetLeft - row.clientWidth / 2,
                 top: button.offsetTop - row.clientHeight / 2 })
}

function show_token(i) {
  const step = steps[at]
  for (const id of ['tokens', 'looks', 'surprise']) mark($(id), i)
  ;[...$('tokens').children].forEach((button, j) => {
    button.ariaChecked = i === j
    button.tabIndex = token === j ? 0 : -1
  })
  for (const frame of $('heads').querySelectorAll('i'))
    Object.assign(frame.style, { top: `${100 * i / T}%`, height: `${100 / T}%` })
  const looks = [...$('looks').children].map((button, j) => {
    const share = j <= i ? weight(head, i, j) : 0
    button.style.setProperty('--weight', share)
    button.classList.toggle('later', j > i)
    button.lastChild.textContent = share >= .01 ? percent(share) : ''
    return [share, j]
  })
  $('looks_at').textContent = `${quoted(i)} looks most at ` + looks.filter(([share]) => share > .01)
    .sort((a, b) => b[0] - a[0]).slice(0, 3).map(([share, j]) => `${quoted(j)} ${percent(share)}`)
    .join(', ')
  const next = i < T - 1 ? quoted(i + 1) : ''
  $('next').textContent = `After ${quoted(i)}` + (next && `. The text goes on with ${next} (✓).`)
  $('lens').replaceChildren(...step.lens.map((layer, l) => {
    const [p, ...top] = layer[i]
    const row = make('div', { className: 'guesses' },
                     make('small', {}, l ? `after layer ${l}` : 'after embedding'))
    for (const [id, share] of top) {
      const guess = make('span', {}, `${data.labels[id]} ${percent(share)}`)
      guess.style.setProperty('--share', `${100 * share}%`)
      guess.classList.toggle('right', next && id === tokens[i + 1].id)
      row.append(guess)
    }
    row.append(make('small', {}, next && `${next} ${percent(p)}`))
    return row
  }))
  $('bits').textContent = describe_bits(i)
}

function describe_bits(i) {
  const total = steps[at].bits.reduce((a, b) => a + b, 0)
  const sum = `All ${T - 1} tokens: ${total.toFixed(1)} bits`
    + (data.draws ? `; for a reader who knows the grammar, ${data.draws.reduce((a, b) => a + b, 0)
      .toFixed(1)}.` : '.')
  if (!i) return sum
  const bits = steps[at].bits[i - 1], drawn = data.draws?.[i - 1]
  let by_grammar = drawn === 0 ? ' The text before it determines it.' : ''
  if (drawn > 0)
    by_grammar = ` The grammar draws it, with a probability of ${percent(2 ** -drawn)}: `
      + `${drawn.toFixed(1)} bits.`
  return `${quoted(i)}: ${bits.toFixed(1)} bits, a probability of ${percent(2 ** -bits)}.`
    + `${by_grammar} ${sum}`
}

build()
draw()
choose(token)
addEventListener('resize', () => draw_curve(steps[at].step))
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw)
