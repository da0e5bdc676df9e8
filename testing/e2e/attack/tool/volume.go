package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// xattrs are names by which GlusterFS keeps what is its own, or answers with it, on bricks and to clients.
var xattrs = []string{"trusted.gfid", "trusted.afr.dirty", "trusted.glusterfs.volume-id", "trusted.glusterfs.pathinfo",
	"trusted.glusterfs.node-uuid", "trusted.io-stats-dump", "glusterfs.pathinfo", "glusterfs.node-uuid", "glusterfs.volume-id",
	"glusterfs.gfid", "glusterfs.gfid.heal", "glusterfs.volfile", "glusterfs.gfidtopath", "glusterfs.ancestry.path",
	"glusterfs.entry-self-heal", "glusterfs.get_real_filename:keep", "glusterfs.posix.dirty", "glusterfs.bad-inode",
	"replica.split-brain-status", "replica.split-brain-choice", "system.glusterfs", "system.nfs4_acl", "security.glusterfs",
	"user.io-stats-dump"}

// inVolume tries, as who has a volume of class shared at dir, what is GlusterFS's or others': one line for each. others are
// the UIDs of other volumes.
func inVolume(dir string, others []string) {
	say := func(what string, err error) {
		if err != nil {
			fmt.Println(what, "closed", err)
		} else {
			fmt.Println(what, "open")
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	const own = ".glusterfs"
	_, err := os.ReadDir(at(own))
	say("list:"+own, err)
	_, err = os.Open(at(own + "/indices/xattrop"))
	say("read:"+own+"/indices", err)
	say("make:"+own, os.Mkdir(at(own), 0o700))
	err = os.Mkdir(at("folder"), 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = os.Rename(at("folder"), at(own))
	}
	say("rename:"+own, err)
	say("link:"+own, os.Link(at("keep"), at(own+"/keep")))
	for what, device := range map[string]struct {
		kind         uint32
		major, minor uint32
	}{"device:memory": {unix.S_IFCHR, 1, 1}, "device:loop-control": {unix.S_IFCHR, 10, 237}, "device:fuse": {unix.S_IFCHR, 10, 229},
		"device:loop0": {unix.S_IFBLK, 7, 0}, "device:vda": {unix.S_IFBLK, 252, 0}} {
		name := at(strings.ReplaceAll(what, ":", "-"))
		_ = os.Remove(name)
		err := unix.Mknod(name, device.kind|0o666, int(unix.Mkdev(device.major, device.minor)))
		if err == nil {
			var f *os.File
			if f, err = os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
				f.Close()
			}
		}
		say(what, err)
	}
	for _, name := range xattrs {
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(at("keep"), name, value)
		if err == nil { // of what anybody may set himself nothing is learnt
			fmt.Printf("get:%s open %q\n", name, value[:n])
		} else {
			say("get:"+name, err)
		}
		say("set:"+name, unix.Lsetxattr(at("keep"), name, []byte("/x/../../"+name), 0))
	}
	say("link:"+"tool", os.Link("/tool", at("tool")))
	for _, other := range others {
		for _, up := range []string{"..", "../..", "../../..", own, own + "/.."} {
			_, err := os.Lstat(dir + "/" + up + "/" + other) // as it is: Join would take it short
			say("find:"+up+"/"+other, err)
		}
		for _, folder := range []string{"/bricks/", "/run/volumes/", "/var/lib/multipaas/volumes/"} {
			_ = os.Remove(at("away"))
			err := os.Symlink(folder+other, at("away"))
			if err == nil {
				_, err = os.ReadDir(at("away"))
			}
			say("symlink:"+folder+other, err)
		}
	}
}

// keep writes a file that stays.
func keep(name, text string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}
