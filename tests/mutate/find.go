package main

import (
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"slices"
	"strconv"
	"strings"
)

// finder collects the sites of one file.
type finder struct {
	src   *source
	file  *sourceFile
	sites []*site
	stack []ast.Node // around the node that is looked at
}

// find lists a file's sites. What is no expression or statement of a function or of a variable is
// left alone, and so are constants where the language wants one.
func find(src *source, file *sourceFile) []*site {
	f := &finder{src: src, file: file}
	f.inspect(file.tree)
	slices.SortStableFunc(f.sites, byPlace)
	return f.sites
}

func (f *finder) inspect(n ast.Node) {
	ast.Inspect(n, func(n ast.Node) bool {
		if n == nil {
			f.stack = f.stack[:len(f.stack)-1]
			return true
		}
		deeper := f.visit(n)
		if deeper {
			f.stack = append(f.stack, n)
		}
		return deeper
	})
}

// visit adds the sites of one node, and says whether those inside are wanted.
func (f *finder) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GenDecl:
		return n.Tok == token.VAR
	case *ast.ArrayType, *ast.StructType, *ast.InterfaceType, *ast.FuncType, *ast.FieldList:
		return false
	case *ast.KeyValueExpr:
		return f.visitKeyValue(n)
	case ast.Stmt:
		f.visitStatement(n)
	case ast.Expr:
		return f.visitExpression(n)
	}
	return true
}

// visitKeyValue leaves an array's index alone, which must be a constant.
func (f *finder) visitKeyValue(n *ast.KeyValueExpr) bool {
	if f.src.info.Types[n.Key].Value == nil {
		return true
	}
	literal, ok := f.parent(0).(*ast.CompositeLit)
	if !ok {
		return true
	}
	if _, ok := f.src.info.Types[literal].Type.Underlying().(*types.Map); ok {
		return true
	}
	f.inspect(n.Value)
	return false
}

// parent is the node around the one that is looked at, or one further out.
func (f *finder) parent(out int) ast.Node {
	if out >= len(f.stack) {
		return nil
	}
	return f.stack[len(f.stack)-1-out]
}

// add makes a site of a node, unless it has no changes.
func (f *finder) add(n ast.Node, s site) {
	if len(s.changes) == 0 {
		return
	}
	s.start, s.end = f.src.offset(n.Pos()), f.src.offset(n.End())
	f.sites = append(f.sites, &s)
}

// changeAt makes a change that is reported at a position.
func (f *finder) changeAt(at token.Pos, was, is, text string) *change {
	p := f.src.fset.PositionFor(at, false)
	return &change{
		file: f.file.short, line: p.Line, col: p.Column, function: f.function(),
		source: f.file.lineOf(p.Offset), was: shown(was), is: shown(is), text: text,
	}
}

// function names the function around.
func (f *finder) function() string {
	for _, n := range f.stack {
		if d, ok := n.(*ast.FuncDecl); ok {
			if d.Recv == nil || len(d.Recv.List) == 0 {
				return d.Name.Name
			}
			recv := d.Recv.List[0].Type
			if star, ok := recv.(*ast.StarExpr); ok {
				recv = star.X
			}
			if generic, ok := recv.(*ast.IndexExpr); ok {
				recv = generic.X
			}
			return f.src.of(f.file, recv) + "." + d.Name.Name
		}
	}
	return "-"
}

// swapped are operators and what takes their place.
var swapped = map[token.Token][]token.Token{
	token.LSS: {token.LEQ, token.GEQ}, token.LEQ: {token.LSS, token.GTR},
	token.GTR: {token.GEQ, token.LEQ}, token.GEQ: {token.GTR, token.LSS},
	token.EQL: {token.NEQ}, token.NEQ: {token.EQL},
	token.LAND: {token.LOR}, token.LOR: {token.LAND},
	token.ADD: {token.SUB}, token.SUB: {token.ADD}, token.MUL: {token.QUO}, token.QUO: {token.MUL},
	token.REM: {token.MUL}, token.AND: {token.OR}, token.OR: {token.AND}, token.XOR: {token.AND},
	token.AND_NOT: {token.AND}, token.SHL: {token.SHR}, token.SHR: {token.SHL},
}

// assigned are the operators of an assignment, and the operation of each.
var assigned = map[token.Token]token.Token{
	token.ADD_ASSIGN: token.ADD, token.SUB_ASSIGN: token.SUB, token.MUL_ASSIGN: token.MUL,
	token.QUO_ASSIGN: token.QUO, token.REM_ASSIGN: token.REM, token.AND_ASSIGN: token.AND,
	token.OR_ASSIGN: token.OR, token.XOR_ASSIGN: token.XOR, token.AND_NOT_ASSIGN: token.AND_NOT,
	token.SHL_ASSIGN: token.SHL, token.SHR_ASSIGN: token.SHR,
}

func (f *finder) visitExpression(n ast.Expr) bool {
	t := f.src.info.Types[n]
	if t.IsType() {
		return false
	}
	if t.Value != nil {
		f.visitConstant(n, t)
		return false
	}
	if basic, ok := f.underlying(n).(*types.Basic); ok && basic.Info()&types.IsBoolean != 0 {
		f.visitBoolean(n)
		return true
	}
	if op, ok := n.(*ast.BinaryExpr); ok && f.isNumber(n) {
		to, typ := swapped[op.Op][0], f.typeText(t.Type)
		if typ == "" || to == token.REM && !f.isInteger(n) {
			return true
		}
		f.add(n, site{
			form: arithmetic, typ: typ, op: f.src.offset(op.OpPos), opText: op.Op.String(),
			changes: []*change{f.changeAt(op.OpPos, f.src.of(f.file, n), f.withOperator(op, to), to.String())},
		})
	}
	return true
}

// visitBoolean changes an operator, and negates a condition whose operator has no such change.
func (f *finder) visitBoolean(n ast.Expr) {
	text := f.src.of(f.file, n)
	var changes []*change
	negated := false // by one of the changes
	switch x := n.(type) {
	case *ast.BinaryExpr:
		for _, to := range swapped[x.Op] {
			is := f.withOperator(x, to)
			changes = append(changes, f.changeAt(x.OpPos, text, is, is))
		}
		negated = x.Op != token.LAND && x.Op != token.LOR
	case *ast.ParenExpr:
		return // what is in it has the changes
	case *ast.UnaryExpr:
		if x.Op == token.NOT {
			is := f.src.of(f.file, x.X)
			changes = append(changes, f.changeAt(x.OpPos, text, is, is))
			negated = true
		}
	}
	if !negated && f.isCondition(n) {
		changes = append(changes, f.changeAt(n.Pos(), text, "!("+text+")", "!("+text+")"))
	}
	f.add(n, site{form: boolean, changes: changes})
}

// isCondition says whether an expression is the condition of an if, or of a case of a switch
// without a value.
func (f *finder) isCondition(n ast.Expr) bool {
	switch p := f.parent(0).(type) {
	case *ast.IfStmt:
		return p.Cond == n
	case *ast.CaseClause:
		around, ok := f.parent(2).(*ast.SwitchStmt)
		return ok && around.Tag == nil
	}
	return false
}

// withOperator is the text of a binary expression with another operator.
func (f *finder) withOperator(x *ast.BinaryExpr, op token.Token) string {
	start, at, end := f.src.offset(x.Pos()), f.src.offset(x.OpPos), f.src.offset(x.End())
	text := string(f.file.text)
	return text[start:at] + op.String() + text[at+len(x.Op.String()):end]
}

// visitConstant changes the literals of a constant.
func (f *finder) visitConstant(n ast.Expr, t types.TypeAndValue) {
	if ident, ok := n.(*ast.Ident); ok && (ident.Name == "true" || ident.Name == "false") {
		is := strconv.FormatBool(ident.Name == "false")
		f.add(n, site{form: boolean, changes: []*change{f.changeAt(n.Pos(), ident.Name, is, is)}})
		return
	}
	if !f.isNumber(n) || t.Value.Kind() != constant.Int && t.Value.Kind() != constant.Float {
		return
	}
	typ := f.typeText(types.Default(t.Type))
	if typ == "" {
		return
	}
	text, start := f.src.of(f.file, n), f.src.offset(n.Pos())
	var changes []*change
	ast.Inspect(n, func(inner ast.Node) bool {
		if call, ok := inner.(*ast.CallExpr); ok && !f.src.info.Types[call.Fun].IsType() {
			return false // such as len
		}
		literal, ok := inner.(*ast.BasicLit)
		if !ok || literal.Kind != token.INT {
			return true
		}
		value, err := strconv.ParseInt(literal.Value, 0, 64)
		if err != nil {
			return true
		}
		instead := []string{strconv.FormatInt(value+1, 10)}
		if value != 0 {
			instead = append(instead, "0")
		}
		at := f.src.offset(literal.Pos()) - start
		for _, is := range instead {
			whole := text[:at] + is + text[at+len(literal.Value):]
			changes = append(changes, f.changeAt(literal.Pos(), text, whole, whole))
		}
		return true
	})
	f.add(n, site{form: number, typ: typ, changes: changes})
}

func (f *finder) visitStatement(n ast.Stmt) {
	if !f.inList(n) {
		if x, ok := n.(*ast.IncDecStmt); ok {
			f.visitStep(x)
		}
		return
	}
	text := f.src.of(f.file, n)
	var changes []*change
	instead := func(is string) { changes = append(changes, f.changeAt(n.Pos(), text, is, is)) }
	switch x := n.(type) {
	case *ast.ExprStmt:
		if call, ok := x.X.(*ast.CallExpr); ok && !f.isPanic(call) {
			instead("")
		}
	case *ast.DeferStmt, *ast.GoStmt:
		instead("")
	case *ast.AssignStmt:
		if x.Tok == token.DEFINE || f.isBlank(x) {
			return
		}
		instead("")
		if op, ok := assigned[x.Tok]; ok && f.isNumber(x.Lhs[0]) {
			at := f.src.offset(x.TokPos) - f.src.offset(n.Pos())
			instead(text[:at] + swapped[op][0].String() + "=" + text[at+len(x.Tok.String()):])
		}
	case *ast.IncDecStmt:
		instead(f.src.of(f.file, x.X) + other(x.Tok).String())
	case *ast.BranchStmt:
		f.visitBranch(x, instead)
	case *ast.ReturnStmt:
		changes = f.visitReturn(x)
	}
	f.add(n, site{form: statement, changes: changes})
}

// visitStep changes an x++ where no block can stand, such as in the head of a for.
func (f *finder) visitStep(x *ast.IncDecStmt) {
	ident, ok := x.X.(*ast.Ident)
	if !ok {
		return
	}
	f.add(x, site{
		form: step, op: f.src.offset(x.TokPos), opText: x.Tok.String(), operand: ident.Name,
		changes: []*change{f.changeAt(x.TokPos, f.src.of(f.file, x), ident.Name+other(x.Tok).String(), "")},
	})
}

func other(t token.Token) token.Token {
	if t == token.INC {
		return token.DEC
	}
	return token.INC
}

// visitBranch removes a break or a continue, and swaps it within a loop.
func (f *finder) visitBranch(x *ast.BranchStmt, instead func(string)) {
	if x.Tok != token.BREAK && x.Tok != token.CONTINUE {
		return
	}
	instead("")
	to := token.BREAK
	if x.Tok == token.BREAK {
		to = token.CONTINUE
	}
	for out := range f.stack {
		switch loop := f.parent(out).(type) {
		case *ast.ForStmt:
			// A break would make an end of a loop that has none, and the function would want a return.
			if to == token.BREAK && loop.Cond == nil {
				return
			}
			instead(to.String() + f.label(x))
			return
		case *ast.RangeStmt:
			instead(to.String() + f.label(x))
			return
		case *ast.FuncLit, *ast.FuncDecl:
			return
		}
	}
}

func (f *finder) label(x *ast.BranchStmt) string {
	if x.Label == nil {
		return ""
	}
	return " " + x.Label.Name
}

// visitReturn makes the errors nil that a return returns.
func (f *finder) visitReturn(x *ast.ReturnStmt) (changes []*change) {
	var results *ast.FieldList
	for _, n := range f.stack { // the innermost is the last
		switch fn := n.(type) {
		case *ast.FuncDecl:
			results = fn.Type.Results
		case *ast.FuncLit:
			results = fn.Type.Results
		}
	}
	if results == nil || len(x.Results) == 0 {
		return nil
	}
	var declared []ast.Expr
	for _, field := range results.List {
		for range max(1, len(field.Names)) {
			declared = append(declared, field.Type)
		}
	}
	if len(declared) != len(x.Results) {
		return nil // of one call
	}
	text, start := f.src.of(f.file, x), f.src.offset(x.Pos())
	for i, result := range x.Results {
		if f.src.of(f.file, declared[i]) != "error" || f.src.info.Types[result].IsNil() {
			continue
		}
		whole := text[:f.src.offset(result.Pos())-start] + "nil" + text[f.src.offset(result.End())-start:]
		changes = append(changes, f.changeAt(x.Pos(), text, whole, whole))
	}
	return changes
}

// inList says whether a statement stands in a list, where a block can take its place.
func (f *finder) inList(n ast.Stmt) bool {
	switch p := f.parent(0).(type) {
	case *ast.BlockStmt, *ast.CaseClause:
		return true
	case *ast.CommClause:
		return p.Comm != n
	}
	return false
}

func (f *finder) isPanic(call *ast.CallExpr) bool {
	ident, ok := call.Fun.(*ast.Ident)
	return ok && ident.Name == "panic" && f.src.info.Types[call.Fun].IsBuiltin()
}

func (f *finder) isBlank(x *ast.AssignStmt) bool {
	return !slices.ContainsFunc(x.Lhs, func(e ast.Expr) bool {
		ident, ok := e.(*ast.Ident)
		return !ok || ident.Name != "_"
	})
}

func (f *finder) underlying(n ast.Expr) types.Type {
	t := f.src.info.Types[n].Type
	if t == nil {
		return nil
	}
	return t.Underlying()
}

func (f *finder) isNumber(n ast.Expr) bool {
	b, ok := f.underlying(n).(*types.Basic)
	return ok && b.Info()&(types.IsInteger|types.IsFloat) != 0
}

func (f *finder) isInteger(n ast.Expr) bool {
	b, ok := f.underlying(n).(*types.Basic)
	return ok && b.Info()&types.IsInteger != 0
}

// typeText writes a type as the file can, or is empty.
func (f *finder) typeText(t types.Type) string {
	fits := true
	text := types.TypeString(types.Default(t), func(p *types.Package) string {
		if p.Path() == f.src.path {
			return ""
		}
		for _, spec := range f.file.tree.Imports {
			if path, err := strconv.Unquote(spec.Path.Value); err != nil || path != p.Path() {
				continue
			}
			if spec.Name == nil {
				return p.Name()
			}
			if spec.Name.Name != "." && spec.Name.Name != "_" {
				return spec.Name.Name
			}
		}
		fits = false
		return ""
	})
	if !fits || strings.ContainsAny(text, " {(") {
		return ""
	}
	return text
}
