package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// interactive says whether the user can be asked: questions are written to
// standard error and read from standard input.
func (p *program) interactive() bool { return isTerminal(p.in) && isTerminal(p.err) }

// ask returns what is given, or what the user types, or a usage error naming the
// flag that would have told it, if nobody can be asked.
func (c *call) ask(given, question, flag string) (string, error) {
	if given != "" {
		return given, nil
	}
	if !c.interactive() {
		return "", usagef("give "+flag+": without a terminal nothing is asked", "%s: %s is missing", c.path, flag)
	}
	fmt.Fprintf(c.err, "%s: ", question)
	text, err := readLine(c.Context.Context, c.in)
	return strings.TrimSpace(text), err
}

// readLine reads one line, byte by byte so that nothing behind it is taken.
// When ctx ends first, the reading goroutine stays behind: the process ends.
func readLine(ctx context.Context, r io.Reader) (string, error) {
	var line []byte
	got := make(chan error, 1)
	go func() {
		b := make([]byte, 1)
		for len(line) < 4096 {
			n, err := r.Read(b)
			if n == 1 && b[0] == '\n' || errors.Is(err, io.EOF) && len(line)+n > 0 {
				line = append(line, bytes.TrimSuffix(b[:n], []byte("\n"))...)
				break
			}
			line = append(line, b[:n]...)
			if err != nil {
				got <- err
				return
			}
		}
		got <- nil
	}()
	select {
	case err := <-got:
		if errors.Is(err, io.EOF) {
			err = &failure{text: "no answer", code: ExitFailed}
		}
		return strings.TrimSuffix(string(line), "\r"), err
	case <-ctx.Done():
		return "", &failure{text: "interrupted", code: ExitInterrupted}
	}
}

// confirm asks before something is lost. Where nobody can be asked it wants
// --yes. If typed is not empty, the user has to type it.
func (c *call) confirm(question, typed string) error {
	if c.Bool("yes") || c.Bool("dry-run") {
		return nil
	}
	if !c.interactive() {
		return usagef("add --yes to confirm: without a terminal nothing is asked", "%s: %s", c.path, question)
	}
	how := "[y/N] "
	if typed != "" {
		how = "Type " + typed + " to confirm: "
	}
	fmt.Fprintf(c.err, "%s %s", question, how)
	answer, err := readLine(c.Context.Context, c.in)
	if err != nil {
		return err
	}
	answer = strings.TrimSpace(answer)
	yes := answer == typed
	if typed == "" {
		yes = strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes")
	}
	if !yes {
		return &failure{text: "nothing was done", code: ExitFailed}
	}
	return nil
}

// maxPasswordFile bounds what is read for a password of at most 256 bytes.
const maxPasswordFile = 4096

// password comes from --password-file (or what flag is called), from the
// environment variable env, or from the user; twice when it is a new one. There
// is no flag for the password itself: every user of a machine sees arguments.
func (c *call) password(flag, env, question string, isNew bool) (string, error) {
	if file := c.String(flag); file != "" {
		return c.passwordFile(file)
	}
	if p := os.Getenv(env); env != "" && p != "" {
		return p, nil
	}
	if !c.interactive() {
		remedy := "give --" + flag + " FILE, or - for standard input"
		if env != "" {
			remedy += ", or set " + env
		}
		return "", usagef(remedy, "%s: the password is missing", c.path)
	}
	p, err := c.hidden(question)
	if err != nil || !isNew {
		return p, err
	}
	again, err := c.hidden("Repeat the password")
	if err != nil {
		return "", err
	}
	if p != again {
		return "", failf("try again", "the passwords are not the same")
	}
	return p, nil
}

// passwordFile reads the first line of a file, or of standard input for "-".
func (c *call) passwordFile(file string) (string, error) {
	if file == "-" {
		return readLine(c.Context.Context, c.in)
	}
	f, err := os.Open(file)
	if err != nil {
		return "", usagef("give a file that you can read", "read the password: %v", err)
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, maxPasswordFile)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the password: %w", err)
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", usagef("write the password into its first line", "the password file %s is empty", file)
	}
	return line, nil
}

// hidden reads a password without showing it. The terminal stops to echo before
// it is asked for, so that nothing of a fast typist shows, and is put back in
// any case, Ctrl-C included.
func (c *call) hidden(question string) (string, error) {
	fd := int(c.in.(*os.File).Fd()) // interactive has looked
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", fmt.Errorf("ask for a password: %w", err)
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return "", fmt.Errorf("ask for a password: %w", err)
	}
	defer func() {
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, before)
		fmt.Fprintln(c.err)
	}()
	fmt.Fprintf(c.err, "%s: ", question)
	return readLine(c.Context.Context, c.in)
}
