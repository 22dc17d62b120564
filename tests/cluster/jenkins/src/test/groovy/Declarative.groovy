import com.lesfurets.jenkins.unit.BasePipelineTest

/** Runs a declarative Jenkinsfile: sections, conditions and what comes after, as Jenkins' handbook describes them. */
abstract class Declarative extends BasePipelineTest {
    public static final String SECRET = 'a-secret-that-must-not-be-seen'

    List<String> reached = []
    List<String> commands = []
    List<String> called = []
    List<String> credentials = []
    /** Commands that hold one of these end with exit code 1. */
    List<String> failing = []
    String branchName = 'main'
    List<Map> frames = []
    List<Boolean> conditions = []

    void setUp() {
        super.setUp()
        binding.setVariable('none', 'none')
        binding.setVariable('env', [HOME: '/home/jenkins', WORKSPACE: '/workspace', BRANCH_NAME: branchName])
        allow('pipeline', [Closure]) { body -> framed([name: 'pipeline'], body) }
        allow('stages', [Closure]) { body -> attempted(body) }
        allow('stage', [String, Closure]) { name, body -> framed([name: name], body) }
        allow('steps', [Closure]) { body ->
            if (frames.last().skipped) return
            reached << frames.last().name
            attempted(body)
        }
        allow('parallel', [Closure]) { body ->
            if (!frames.last().skipped) attempted(body)
        }
        allow('when', [Closure]) { body -> frames.last().skipped = !all(body) }
        allow('allOf', [Closure]) { body -> conditions << all(body) }
        allow('expression', [Closure]) { body -> conditions << (body() as boolean) }
        allow('branch', [String]) { name -> conditions << (name == branchName) }
        allow('post', [Closure]) { body -> if (!frames.last().skipped) body() }
        allow('always', [Closure]) { body -> body() }
        allow('failure', [Closure]) { body -> if (frames.last().error) body() }
        ['options', 'parameters', 'environment'].each { allow(it, [Closure]) { body -> body() } }
        allow('agent', [Closure]) { body -> body() }
        allow('agent', [String]) { }
        ['label', 'failFast'].each { name -> allow(name, [Object]) { } }
        allow('label', [String]) { }
        allow('failFast', [Boolean]) { }
        ['timestamps', 'skipStagesAfterUnstable', 'disableConcurrentBuilds'].each { allow(it, []) { } }
        ['disableConcurrentBuilds', 'buildDiscarder', 'logRotator', 'booleanParam', 'timeout'].each { allow(it, [Map]) { } }
        allow('buildDiscarder', [Object]) { }
        allow('timeout', [Map, Closure]) { _, body -> body() }
        ['junit', 'recordCoverage', 'archiveArtifacts'].each { name -> allow(name, [Map]) { called << name } }
        allow('input', [Map]) { called << 'input' }
        allow('string', [Map]) { it }
        allow('usernamePassword', [Map]) { it }
        allow('withCredentials', [List, Closure]) { List<Map> wanted, body ->
            def names = wanted.collectMany { it.findAll { key, _ -> key.endsWith('ariable') }.values() }
            credentials.addAll(wanted*.credentialsId)
            // A command in double quotes would take these in.
            names.each { binding.setVariable(it, SECRET) }
            try { body() } finally { names.each { binding.variables.remove(it) } }
        }
        allow('sh', [String]) { command ->
            commands << command
            if (failing.any { command.contains(it) }) throw new RuntimeException("script returned exit code 1: $command")
        }
    }

    /** Run a Jenkinsfile; returns how it ended. */
    String run(String path, Map params) {
        binding.setVariable('params', params)
        try {
            runScript(path)
            return 'SUCCESS'
        } catch (RuntimeException e) {
            return 'FAILURE'
        }
    }

    List<String> made() {
        commands.findAll { it.startsWith('make ') }.collect { it.split(' ')[1] }
    }

    void allow(String name, List<Class> types, Closure body) {
        helper.registerAllowedMethod(name, types, body)
    }

    void framed(Map frame, Closure body) {
        frames.add(frame)
        try { body() } finally { frames.remove(frames.size() - 1) }
        if (frame.error) throw frame.error
    }

    /** What goes wrong is kept until what comes after has run. */
    void attempted(Closure body) {
        def frame = frames.last()
        try { body() } catch (RuntimeException e) { frame.error = e }
    }

    boolean all(Closure body) {
        def outer = conditions
        conditions = []
        body()
        def result = conditions.every()
        conditions = outer
        return result
    }
}
