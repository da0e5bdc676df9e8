// Command multipaas is the one file of MultiPaaS.
package main

func main() {}
