// Command look tells what a child may do: it tries its arguments, "HOW:WHAT" each,
// writes a line for each to the file that the first one names, and stays.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

func try(how, what string) (string, error) {
	switch how {
	case "list":
		entries, err := os.ReadDir(what)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " "), err
	case "processes":
		entries, err := os.ReadDir(what)
		n := 0
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err == nil {
				n++
			}
		}
		return strconv.Itoa(n), err
	case "read":
		data, err := os.ReadFile(what)
		return string(data), err
	case "write":
		return "", os.WriteFile(what, []byte("x"), 0o600)
	case "run":
		return "", exec.Command(what).Run()
	case "kill":
		pid, _ := strconv.Atoi(what)
		return "", syscall.Kill(pid, 0)
	}
	return "", fmt.Errorf("%q: unknown", how)
}

func main() {
	var b strings.Builder
	for _, arg := range os.Args[2:] {
		how, what, _ := strings.Cut(arg, ":")
		got, err := try(how, what)
		if err != nil {
			got = "error: " + err.Error()
		}
		fmt.Fprintf(&b, "%s\t%s\n", arg, got)
	}
	if err := os.WriteFile(os.Args[1]+".new", []byte(b.String()), 0o644); err != nil {
		panic(err)
	}
	if err := os.Rename(os.Args[1]+".new", os.Args[1]); err != nil {
		panic(err)
	}
	syscall.Pause()
}
