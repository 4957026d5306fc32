// What depends on the step of the training. The rest is in journey.js, whose names this uses.
function draw() {
  const step = steps[at]
  if (step.step !== null)
    $('step').ariaValueText = $('step_output').textContent = step.step.toLocaleString('en')
  const named = h => step.heads[Math.floor(h / H)][h % H]
  const with_score = h => {
    const { name, scores } = named(h)
    return name && `${name} ${percent(scores[names.indexOf(name)])}`
  }
  $('heads').querySelectorAll('.head').forEach((button, h) => {
    draw_map(button.querySelector('canvas'), h)
    button.lastChild.textContent = with_score(h)
    button.ariaLabel = `${head_name(h)}: ${with_score(h) || 'no name'}`
    button.ariaPressed = h === head
  })
  $('head_title').textContent = [head_name(head), with_score(head)].filter(Boolean).join(': ')
  $('scores').replaceChildren(...patterns.flatMap(({ name, looks, even }, k) => {
    const score = named(head).scores[k]
    return [make('span', { title: looks }, make(named(head).name === name ? 'b' : 'span', {}, name),
                 make('small', {}, make('br'), looks)),
            meter(score, even), make('span', {}, percent(score))]
  }))
  const height = bits => `${100 * Math.min(1, bits / MOST_BITS)}%`
  ;[...$('surprise').children].forEach((button, i) => {
    const [bar, frame] = button.querySelectorAll('.column > *')
    const bits = i ? step.bits[i - 1] : 0
    bar.style.setProperty('--height', height(bits))
    frame?.style.setProperty('--height', height(data.draws[i - 1]))
    button.lastChild.textContent = i ? bits.toFixed(1) : ''
  })
  $('sample').replaceChildren(make('span', {}, data.prompt), step.sample)
  draw_curve(step.step)
  draw_facts(step)
  show_token(token)
}

function draw_map(canvas, h) {
  const style = getComputedStyle(document.documentElement)
  const [r, g, b] = style.getPropertyValue('--accent').trim().split(' ')
  const image = new ImageData(T, T)
  for (let i = 0; i < T; i++)
    for (let j = 0; j <= i; j++)        // the root makes small weights visible
      image.data.set([r, g, b, 12 + 243 * Math.sqrt(weight(h, i, j))], 4 * (i * T + j))
  canvas.getContext('2d').putImageData(image, 0, 0)
}

function draw_curve(step) {
  const svg = $('curve'), width = svg.clientWidth, height = svg.clientHeight - 34
  const all = [...curves.train_loss || [], ...curves.val_loss || []]
  if (!all.length || !width) return
  const last = Math.log1p(Math.max(1, ...all.map(([step]) => step)))
  const own = steps.map(({ step, bits }) => [step, mean_nats(bits)])
  const most = Math.max(...[...all, ...own].map(([, loss]) => loss))
  const x = step => 34 + (width - 44) * Math.log1p(step) / last
  const y = loss => 8 + (height - 8) * (1 - loss / most)
  const line = points => points.map(
    ([step, loss], i) => `${i ? 'L' : 'M'}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join('')
  const add = (tag, attributes, ...children) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
    element.append(...children)
    svg.append(element)
  }
  svg.replaceChildren()
  const gap = [.5, 1, 2, 5].find(gap => most < 6 * gap) || most
  for (let loss = 0; loss <= most; loss += gap)
    add('text', { x: 26, y: y(loss) + 4, 'text-anchor': 'end' }, String(loss))
  for (let tick = 1; x(tick) <= width; tick *= 10)
    add('text', { x: x(tick), y: height + 18, 'text-anchor': 'middle' }, tick.toLocaleString('en'))
  add('text', { x: width, y: height + 33, 'text-anchor': 'end' }, 'step (log scale)')
  add('path', { d: `M34 ${y(0)}H${width}` })
  add('path', { d: line(curves.train_loss) })
  for (const [step, loss] of curves.val_loss)
    add('circle', { cx: x(step), cy: y(loss), r: 3.5, fill: 'var(--ink)' })
  if (step === null) return
  if (data.draws)
    add('path', { class: 'this', d: `M34 ${y(mean_nats(data.draws))}H${width}`,
                  'stroke-dasharray': '4 4' })
  add('path', { class: 'this', d: line(own) })
  for (const [step, loss] of own) add('circle', { class: 'this', cx: x(step), cy: y(loss), r: 3 })
  add('path', { class: 'this', d: `M${x(step)} 4V${y(0)}`, style: 'stroke-width: 2.5' })
  svg.ariaLabel = `Loss by step, from ${most.toFixed(2)} to ${all.at(-1)[1].toFixed(2)} nats per `
    + `token; the mark is at step ${step}.`
}

// The value logged at about this step, and when exactly; [] if there is none
function nearest(column, step) {
  const gap = ([logged]) => Math.abs(Math.log1p(logged) - Math.log1p(step))
  const near = (curves[column] || []).reduce((a, b) => gap(b) < gap(a) ? b : a, [Infinity])
  return gap(near) < .3 ? near : []
}
function draw_facts({ step, changes }) {
  const facts = { 'train_loss': 'training loss', 'val_loss': 'validation loss',
                  'lr': 'learning rate', 'grad_norm': 'gradient norm' }
  $('facts').replaceChildren(...Object.entries(facts).flatMap(([column, name]) => {
    const [logged, value] = step === null ? [] : nearest(column, step)
    let shown = '', when = 'not logged here'
    if (value !== undefined) {
      shown = String(Number(value.toPrecision(3)))
      when = logged === step ? '' : `at step ${logged.toLocaleString('en')}`
    }
    return [make('span', {}, name), make('b', {}, shown), make('small', {}, when)]
  }))
  $('changed').textContent = steps.length > 1 ? 'Before the first change of the weights' : ''
  if (changes)
    $('changed').textContent = 'How much the weights of each part have changed since step '
      + `${steps[at - 1].step.toLocaleString('en')}, relative to their size`
  const label = part => part === 'embedding' && data.is_tied ? 'embedding = output' : part
  $('shares').replaceChildren(...Object.entries(changes || {}).flatMap(([part, size]) =>
    [make('span', {}, label(part)), meter(Math.min(1, size)), make('span', {}, percent(size)),
     make('small', {})]))
}
