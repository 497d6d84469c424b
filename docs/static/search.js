// Results whose page holds the words side by side come first, then those with every word whole; excerpts start
// there, and read as text: "γ" instead of its TeX.
const greek = { alpha: 'α', beta: 'β', gamma: 'γ', delta: 'δ', epsilon: 'ε', eta: 'η', theta: 'θ', lambda: 'λ',
  mu: 'μ', nu: 'ν', pi: 'π', sigma: 'σ', tau: 'τ', phi: 'φ', psi: 'ψ', omega: 'ω', Sigma: 'Σ', Delta: 'Δ',
  Pi: 'Π', Phi: 'Φ', nabla: '∇', sum: 'Σ', int: '∫', infty: '∞', partial: '∂', cdot: '·', times: '×', le: '≤',
  ge: '≥', sim: '∼', to: '→', mid: '|', in: '∈', ldots: '…', dots: '…', log: 'log', exp: 'exp', ln: 'ln' }
const plainTeX = tex => tex
  .replace(/\\(?:mathrm|mathbf|mathcal|mathbb|text|operatorname|boldsymbol|hat|tilde|bar)\b/g, '')
  .replace(/\\[td]?frac\s*(?:\{([^{}]*)\}|(\w))\s*(?:\{([^{}]*)\}|(\w))/g, '$1$2/$3$4')
  .replace(/\\([A-Za-z]+)/g, (_, name) => greek[name] ?? '')
  .replace(/\\[,;:! ]|[{}$]|\\/g, '').replace(/\s+/g, ' ').trim()
const plainText = text => text
  .replace(/\\\[[\s\S]*?\\\]/g, ' … ').replace(/\\\(([\s\S]*?)\\\)/g, (_, tex) => plainTeX(tex))
  .replace(/\s+/g, ' ')

if (typeof Search !== 'undefined') {
  const textOf = Search.htmlToText
  Search.htmlToText = (html, anchor) => plainText(textOf(html, anchor))

  const escaped = words => words.map(w => w.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
  Search.makeSearchSummary = (html, keywords, anchor) => {
    const text = Search.htmlToText(html, anchor)
    const asked = new URLSearchParams(location.search).get('q').trim().split(/\s+/)
    const whole = w => new RegExp(`(?<![\\p{L}\\p{N}_])${w}(?![\\p{L}\\p{N}_])`, 'iu')
    const phrase = text.search(whole(escaped(asked).join('\\s+')))
    const places = escaped(asked).map(w => text.search(whole(w)))
    const first = [phrase, ...places, ...[...keywords].map(k => text.toLowerCase().indexOf(k.toLowerCase()))]
      .find(i => i > -1) ?? 0
    const start = first < 120 ? 0 : text.lastIndexOf(' ', first - 80) + 1
    const end = text.length < start + 240 ? text.length : text.lastIndexOf(' ', start + 240)
    const summary = document.createElement('p')
    summary.classList.add('context')
    summary.textContent = (start ? '… ' : '') + text.slice(start, end).trim() + (end < text.length ? ' …' : '')
    const rank = phrase > -1 ? 0 : places.every(i => i > -1) ? 1 : 2
    queueMicrotask(() => {
      const item = summary.closest('li')
      if (!item) return
      item.dataset.rank = rank
      const below = [...item.parentElement.children].find(o => (o.dataset.rank ?? 3) > rank)
      if (below && below.compareDocumentPosition(item) & Node.DOCUMENT_POSITION_FOLLOWING) below.before(item)
    })
    return summary
  }
}
