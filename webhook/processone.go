package main

import (
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/shiplog-dev/shiplog/internal/placescripts"
)

// The kernel spares process 1 of a container: a signal to all processes does not reach it, and its
// default action does not end it. With tee in front, what was process 1 is that no longer. Where
// the pod says that a container relies on it, the container is left alone. What an image holds, or
// a build downloads, the pod does not say.

// tektonEntrypoint is what Tekton makes process 1 of a step.
const tektonEntrypoint = "/tekton/bin/entrypoint"

// These bound what a text of hostile or generated code costs: how many places in it are looked at
// for each word, and how many bytes on either side of one.
const (
	mostSpots  = 200
	spotWindow = 256
	// commandWindow is how far in front of a command it is decided that it is one.
	commandWindow = 64
)

// commName is how many bytes of a process's name the kernel keeps.
const commName = 15

// onProcessOne is what a container does, as far as the pod says it.
type onProcessOne struct {
	name  string   // of process 1, as the kernel knows it
	line  string   // the command line of process 1
	texts []string // the shell commands and other code that run
	first bool     // the container's own command is process 1, and not Tekton's entrypoint
}

// scriptsOf are the scripts of a TaskRun's pod by their path.
func scriptsOf(spec *corev1.PodSpec) map[string]string {
	i := slices.IndexFunc(spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == placescripts.Container && len(c.Args) == 2
	})
	if i < 0 {
		return nil
	}
	all := map[string]string{}
	for _, s := range placescripts.Find(spec.InitContainers[i].Args[1]) {
		all[s.Path] = string(s.Content)
	}
	return all
}

// readOnProcessOne gathers what the pod says of a container that has a command. It takes the
// container's script from scripts: each is Tekton's for one container, and is looked at once.
func readOnProcessOne(c *corev1.Container, scripts map[string]string) onProcessOne {
	argv := slices.Concat(c.Command, c.Args)
	o := onProcessOne{name: path.Base(argv[0]), line: strings.Join(argv, " "), first: true}
	o.name = o.name[:min(len(o.name), commName)]
	if len(c.Command) == 1 && c.Command[0] == tektonEntrypoint {
		// Behind the flags of Tekton's entrypoint is the step's own command.
		if end := slices.Index(c.Args, "--"); end >= 0 {
			if i := slices.Index(c.Args[:end], "-entrypoint"); i >= 0 && i+1 < end {
				argv, o.first = append([]string{c.Args[i+1]}, c.Args[end+1:]...), false
			}
		}
	}
	o.texts = []string{strings.Join(argv, " ")}
	for _, word := range argv {
		if script, ok := scripts[word]; ok {
			o.texts = append(o.texts, script)
			delete(scripts, word)
		}
	}
	return o
}

// needsProcessOne says why a container would behave differently behind tee, or nothing.
func needsProcessOne(c *corev1.Container, scripts map[string]string) reason {
	o := readOnProcessOne(c, scripts)
	switch {
	case slices.ContainsFunc(o.texts, o.signalsAll):
		return signalsAll
	case o.first && slices.ContainsFunc(o.texts, insistsOnProcessOne):
		return processOne
	}
	return ""
}

// signalsAll says whether a text signals all processes, or one more than its own: Tekton's
// entrypoint, where that is not process 1.
func (o onProcessOne) signalsAll(text string) bool {
	return anySpot(text, "kill", func(p spot) bool {
		return p.isCommand() && slices.Contains(killTargets(p.words()), "-1") ||
			killCall.MatchString(p.after)
	}) || anySpot(text, "pkill", func(p spot) bool {
		return p.isCommand() && o.pkills(p.words())
	}) || anySpot(text, "killall", func(p spot) bool {
		return p.isCommand() && o.killsByName(p.words())
	}) || anySpot(text, "killall5", func(p spot) bool {
		return p.isCommand()
	})
}

// killCall is what follows "kill" where other languages than the shell signal all processes: such
// as os.kill(-1, 9), Process.kill("KILL", -1) and kill KILL => -1.
var killCall = regexp.MustCompile(`^(?:\s*\(\s*-1\s*[,)]|` +
	`\s*\(\s*[^,()\s]{1,30}\s*,\s*-1\s*[,)]|\s+['"]?\w{1,12}['"]?\s*(?:,|=>)\s*-1\b)`)

// killTargets are the processes of a kill command, without its options.
func killTargets(words []string) []string {
	signal := false // -1 is SIGHUP in front of the others, and all processes behind it
	for len(words) > 0 {
		switch w := words[0]; {
		case w == "--":
			return words[1:]
		case w == "-0" && !signal:
			return nil // it asks whether they are there
		case slices.Contains([]string{"-s", "-n", "-q", "--signal", "--queue"}, w):
			words, signal = words[min(2, len(words)):], true
		case strings.HasPrefix(w, "--"):
			words, signal = words[1:], signal || strings.HasPrefix(w, "--signal=")
		case strings.HasPrefix(w, "-") && !signal:
			words, signal = words[1:], true
		default:
			return words
		}
	}
	return nil
}

// Options of pkill and killall with a value, and a signal as an option.
const (
	pkillValues   = "gGOPqstuUFrd"
	killallValues = "sunoyZ"
)

var signalOption = regexp.MustCompile(`^-(?:\d+|[A-Z][A-Z0-9+-]+)$`)

// longOptions are the short forms of those long ones that matter.
var longOptions = map[string]string{
	"--signal": "q", "--queue": "q", "--pgroup": "g", "--group": "G", "--older": "O",
	"--parent": "P", "--session": "s", "--terminal": "t", "--euid": "u", "--uid": "U",
	"--pidfile": "F", "--runstates": "r", "--ns": "F", "--nslist": "q", "--full": "f",
	"--exact": "x", "--inverse": "v", "--ignore-case": "i", "--cgroup": "F", "--env": "F",
}

// readOptions reads a command's words: the values of its options by letter, and what is none.
// withValue are the letters that have a value.
func readOptions(words []string, withValue string) (values map[string]string, rest []string) {
	values = map[string]string{}
	take := func(letter, value string, words []string) []string {
		if value == "" && strings.Contains(withValue, letter) && len(words) > 0 {
			value, words = words[0], words[1:]
		}
		values[letter] = value
		return words
	}
	for len(words) > 0 {
		w := words[0]
		words = words[1:]
		switch {
		case w == "--":
			return values, append(rest, words...)
		case signalOption.MatchString(w):
		case strings.HasPrefix(w, "--"):
			name, value, _ := strings.Cut(w, "=")
			if letter, known := longOptions[name]; known {
				words = take(letter, value, words)
			}
		case len(w) > 1 && w[0] == '-':
			for i := 1; i < len(w); i++ {
				if letter := w[i : i+1]; strings.Contains(withValue, letter) {
					words = take(letter, w[i+1:], words)
					break
				}
				values[w[i:i+1]] = ""
			}
		default:
			rest = append(rest, w)
		}
	}
	return values, rest
}

// pkills says whether a pkill command selects process 1. One whose pattern the shell makes does
// not count, nor does one of a user together with a pattern that does not match.
func (o onProcessOne) pkills(words []string) bool {
	values, patterns := readOptions(words, pkillValues)
	has := func(letter string) bool { _, ok := values[letter]; return ok }
	switch {
	case has("P"), has("g"), has("s"):
		// The children of process 1, its group or its session: in front of tee it is in none of them.
		return values["P"] == "1" || values["g"] == "1" || values["s"] == "0" || values["s"] == "1"
	case has("F"), has("t"):
		return false
	case len(patterns) == 0:
		return has("u") || has("U") || has("G")
	case fromShell.MatchString(patterns[0]):
		return false
	}
	pattern := patterns[0]
	if has("x") {
		pattern = "^(?:" + pattern + ")$"
	}
	if has("i") {
		pattern = "(?i)" + pattern
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return false // pkill does not take it either
	}
	against := o.name
	if has("f") {
		against = o.line
	}
	return re.MatchString(against) != has("v")
}

// fromShell is a word that the shell expands.
var fromShell = regexp.MustCompile("\\$[\\w{(@*#?!$-]|`")

// killsByName says whether a killall command selects process 1.
func (o onProcessOne) killsByName(words []string) bool {
	values, names := readOptions(words, killallValues)
	if _, ofUser := values["u"]; ofUser && len(names) == 0 {
		return true
	}
	_, patterns := values["r"]
	return slices.ContainsFunc(names, func(name string) bool {
		if !patterns {
			return path.Base(name) == o.name
		}
		re, err := regexp.Compile(name)
		return err == nil && re.MatchString(o.name)
	})
}

// initPrograms refuse to run, or run differently, when they are not process 1.
var initPrograms = []string{
	"systemd", "s6-svscan", "s6-overlay-suexec", "s6-linux-init", "runit", "runit-init",
	"openrc-init",
}

// initFolders are where a program by the name init is an init system.
var initFolders = []string{"/", "/sbin/", "/bin/", "/usr/sbin/", "/usr/bin/"}

// insistsOnProcessOne says whether a text runs an init system, asks whether it is process 1, or
// signals itself, which process 1 survives.
func insistsOnProcessOne(text string) bool {
	return slices.ContainsFunc(initPrograms, func(program string) bool {
		return anySpot(text, program, spot.isCommand)
	}) || anySpot(text, "init", func(p spot) bool {
		return slices.Contains(initFolders, p.folder) && p.isCommand()
	}) || anySpot(text, "kill", func(p spot) bool {
		return p.isCommand() && slices.ContainsFunc(killTargets(p.words()), func(target string) bool {
			return slices.Contains(selfTargets, target)
		})
	}) || slices.ContainsFunc(ownNumbers, func(number string) bool {
		return anySpot(text, number, func(p spot) bool {
			return isOne.MatchString(p.after) || oneIs.MatchString(p.before+p.folder)
		})
	})
}

// selfTargets are how a shell script signals its own process, or the group that it is in.
var selfTargets = []string{"0", "-0", "$$", "${$}", "-$$", "$BASHPID"}

// ownNumbers are how code names its own process, without what may be in front of it.
var ownNumbers = []string{
	"$$", "${$}", "$BASHPID", "${BASHPID}", "getpid()", "Getpid()",
	"process.pid", "Process.pid",
}

// A comparison with 1, behind the number of the process and in front of it.
var (
	isOne = regexp.MustCompile(
		`^["'})]*\s*(?:={1,3}|!={1,2}|-eq|-ne|-gt|-lt|-le|-ge|[<>]=?)\s*["']?1(?:$|[^\w.])`)
	oneIs = regexp.MustCompile(
		`(?:^|[^\w.])1["']?\s*(?:={1,3}|!={1,2}|-eq|-ne|-gt|-lt|-le|-ge|[<>]=?)\s*["'({]*(?:\w+\.)?$`)
)

// spot is where a word stands in a text, with what is near it.
type spot struct {
	before string // what is in front of the word, and of the folder of its path
	folder string // the word's folder where it is a path, such as "/usr/bin/"
	after  string
}

// anySpot says whether a word that is not a part of a longer one stands in a text in such a
// place. It takes time in proportion to the text.
func anySpot(text, word string, found func(spot) bool) bool {
	looked := 0
	for at := 0; looked < mostSpots; {
		i := strings.Index(text[at:], word)
		if i < 0 {
			return false
		}
		begin, end := at+i, at+i+len(word)
		at = end
		if end < len(text) && isNameByte(text[end-1]) && isNameByte(text[end]) {
			continue
		}
		least := max(0, begin-spotWindow)
		path := begin
		if isNameByte(word[0]) {
			for path > least && (isNameByte(text[path-1]) || text[path-1] == '/') {
				path--
			}
		}
		folder := text[path:begin]
		// "os.kill" is a word of its own, and so is "Process.kill".
		if folder != "" && !strings.HasSuffix(folder, "/") && !strings.HasSuffix(folder, ".") {
			continue
		}
		looked++
		p := spot{text[least:path], folder, text[end:min(len(text), end+spotWindow)]}
		if !p.inComment() && found(p) {
			return true
		}
	}
	return false
}

// isNameByte says whether a byte can be in the name of a program.
func isNameByte(b byte) bool {
	return b == '_' || b == '-' || b == '.' || '0' <= b && b <= '9' ||
		'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}

// inComment says whether the line is a comment of a shell script and most other languages.
func (p spot) inComment() bool {
	line := p.before[strings.LastIndexByte(p.before, '\n')+1:]
	line = strings.TrimLeft(line, " \t")
	return strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "#!")
}

// commandPlace is what is in front of a command in a shell's text.
var commandPlace = regexp.MustCompile(
	"(?:^|[\n;&|({!'\"`]|(?:^|[\\s/;&|({'\"`])(?:then|do|else|if|while|until|exec|sudo|doas|env|" +
		"command|builtin|busybox|nohup|setsid|time|\\w*sh\\s+(?:-\\S+\\s+)*-\\w*c)" +
		"(?:\\s+-\\S+)*\\s)[ \t]*$")

// isCommand says whether the word is where a shell takes it for a command.
func (p spot) isCommand() bool {
	return (p.folder == "" || strings.HasSuffix(p.folder, "/")) &&
		(p.after == "" || strings.IndexByte(" \t\r\n;&|)}<>`'\"\\", p.after[0]) >= 0) &&
		commandPlace.MatchString(p.before[max(0, len(p.before)-commandWindow):])
}

// words are the arguments behind a command, up to where a shell ends it.
func (p spot) words() (words []string) {
	var word strings.Builder
	inWord := false
	end := func() {
		if inWord {
			words = append(words, word.String())
		}
		word.Reset()
		inWord = false
	}
	for text := p.after; text != ""; {
		b := text[0]
		text = text[1:]
		switch {
		case b == '\\' && strings.HasPrefix(text, "\n"):
			text = text[1:]
			end()
		case b == '\\': // a quote within quotes
		case b == ' ' || b == '\t':
			end()
		case b == '#' && !inWord:
			return words // the rest of the line is a comment
		case (b == '\'' || b == '"') && !inWord:
			quoted, rest, closed := strings.Cut(text, string(b))
			if !closed || len(words) == 0 && len(text) == len(p.after)-1 {
				return words // the command itself is within quotes
			}
			word.WriteString(quoted)
			text, inWord = rest, true
		case strings.IndexByte("\n;&|)<>`'\"", b) >= 0:
			end()
			return words
		default:
			word.WriteByte(b)
			inWord = true
		}
	}
	end()
	return words
}
