package report

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"strings"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/testing/bench/measure"
)

// Group is a section with its results.
type Group struct {
	Section measure.Section
	Results []measure.Result
}

// The chart's measures, in pixels.
const (
	chartWidth = 1040
	labelRight = 372 // labels end here
	plotLeft   = 392
	plotRight  = 776
	textLeft   = 796 // the numbers
	rowHeight  = 22
	barHeight  = 12
	headHeight = 92
	groupGap   = 34
)

const (
	inkColor    = "#1f2933"
	quietColor  = "#6b7785"
	gridColor   = "#e3e7eb"
	betterColor = "#2a7f62"
	worseColor  = "#c8643c"
	goalColor   = "#1f2933"
)

// chart draws bars of ratios on a logarithmic scale.
type chart struct {
	bytes.Buffer
	low, high float64 // of the scale, powers of two
}

// Chart writes an SVG with a bar for each result that has a peer: how much of
// the peer's number ours is. The scale is logarithmic, so that half and double
// are equally far from the line at 1.
func Chart(name string, m measure.Machine, groups []Group) error {
	return atomicfile.Write(name, draw(m, groups), 0o644)
}

func draw(m measure.Machine, groups []Group) []byte {
	c := &chart{low: 0.5, high: 2}
	height := headHeight + 40
	var shown []Group
	for _, g := range groups {
		g.Results = compared(g.Results)
		if len(g.Results) == 0 {
			continue
		}
		shown = append(shown, g)
		height += groupGap + rowHeight*len(g.Results)
		for _, r := range g.Results {
			for _, v := range []float64{r.Ratio(), r.Goal.Ratio} {
				for v > 0 && v < c.low {
					c.low /= 2
				}
				for v > c.high {
					c.high *= 2
				}
			}
		}
	}
	c.low, c.high = max(c.low, 1.0/64), min(c.high, 64)
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="system-ui, 'DejaVu Sans', Helvetica, sans-serif" font-size="13">`+"\n", chartWidth, height, chartWidth, height)
	fmt.Fprintf(c, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", chartWidth, height)
	c.text(24, 34, "start", inkColor, 20, "600", "MultiPaaS beside its peers: ours divided by theirs")
	c.text(24, 56, "start", quietColor, 12, "400", fmt.Sprintf("%s · %d cores · %.0f GiB · Linux %s · %s · load before %s",
		m.CPU, m.Cores, float64(m.MemoryBytes)/(1<<30), m.Kernel, m.Began.Format("2006-01-02"), m.LoadBefore))
	c.legend()
	bottom := height - 36
	c.grid(headHeight, bottom)
	y := headHeight
	for _, g := range shown {
		y += groupGap
		c.text(24, y-9, "start", inkColor, 13, "700", g.Section.Name)
		for _, r := range g.Results {
			c.bar(y, g.Section.Name, r)
			y += rowHeight
		}
	}
	c.WriteString("</svg>\n")
	return c.Bytes()
}

func compared(results []measure.Result) []measure.Result {
	var out []measure.Result
	for _, r := range results {
		if r.Ratio() > 0 {
			out = append(out, r)
		}
	}
	return out
}

func (c *chart) x(ratio float64) float64 {
	ratio = min(max(ratio, c.low), c.high)
	return plotLeft + (plotRight-plotLeft)*math.Log(ratio/c.low)/math.Log(c.high/c.low)
}

func (c *chart) text(x, y int, anchor, color string, size int, weight, s string) {
	fmt.Fprintf(c, `<text x="%d" y="%d" text-anchor="%s" fill="%s" font-size="%d" font-weight="%s">%s</text>`+"\n", x, y, anchor, color, size, weight, html.EscapeString(s))
}

func (c *chart) legend() {
	y := 80
	box := func(x int, color string) {
		fmt.Fprintf(c, `<rect x="%d" y="%d" width="12" height="10" rx="2" fill="%s"/>`+"\n", x, y-9, color)
	}
	box(24, betterColor)
	c.text(42, y, "start", quietColor, 12, "400", "ours is better")
	box(140, worseColor)
	c.text(158, y, "start", quietColor, 12, "400", "the peer is better")
	c.goal(290, float64(y-4))
	c.text(302, y, "start", quietColor, 12, "400", "goal")
	c.text(352, y, "start", quietColor, 12, "400", "▲ more is better   ▼ less is better")
}

func (c *chart) grid(top, bottom int) {
	for v := c.low; v <= c.high*1.01; v *= 2 {
		color, wide := gridColor, 1.0
		if v == 1 {
			color, wide = inkColor, 1.5
		}
		fmt.Fprintf(c, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s" stroke-width="%g"/>`+"\n", c.x(v), top+8, c.x(v), bottom, color, wide)
		label := fmt.Sprintf("%gx", v)
		if v < 1 {
			label = fmt.Sprintf("1/%gx", 1/v)
		}
		c.text(int(c.x(v)), bottom+18, "middle", quietColor, 11, "400", label)
	}
}

func (c *chart) goal(x, y float64) {
	fmt.Fprintf(c, `<path d="M%.1f %.1f l5 5 l-5 5 l-5 -5 z" fill="#ffffff" stroke="%s" stroke-width="1.6"/>`+"\n", x, y-5, goalColor)
}

func (c *chart) bar(y int, section string, r measure.Result) {
	ratio, middle := r.Ratio(), y+rowHeight/2
	color, arrow := betterColor, "▲"
	if r.Better == measure.Lower {
		arrow = "▼"
	}
	if (ratio < 1) == (r.Better == measure.Higher) && ratio != 1 {
		color = worseColor
	}
	name := strings.ReplaceAll(strings.TrimPrefix(r.Name, section+"/"), "/", " · ")
	c.text(labelRight-16, middle+4, "end", inkColor, 12, "400", name)
	c.text(labelRight, middle+4, "end", quietColor, 9, "400", arrow)
	from, to := c.x(1), c.x(ratio)
	if to < from {
		from, to = to, from
	}
	fmt.Fprintf(c, `<rect x="%.1f" y="%d" width="%.1f" height="%d" rx="2" fill="%s"><title>%s: %s %s, %s: %s %s</title></rect>`+"\n", from, middle-barHeight/2, max(to-from, 1.5), barHeight, color,
		html.EscapeString(r.Name), Number(r.Ours.Median), r.Unit, html.EscapeString(r.Peer), Number(r.PeerStat.Median), r.Unit)
	if r.Goal.Ratio > 0 {
		c.goal(c.x(r.Goal.Ratio), float64(middle))
	}
	fmt.Fprintf(c, `<text x="%d" y="%d" fill="%s" font-size="12"><tspan font-weight="700">%s</tspan><tspan fill="%s">  %s %s, %s %s</tspan></text>`+"\n", textLeft, middle+4, inkColor,
		ratioText(ratio), quietColor, Number(r.Ours.Median), html.EscapeString(r.Unit), html.EscapeString(r.Peer), Number(r.PeerStat.Median))
}
