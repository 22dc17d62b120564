import static org.junit.Assert.*

import org.junit.Before
import org.junit.Test

class ContinuousIntegrationTest extends Declarative {
    public static final String FILE = 'cluster/jenkins/CI/Jenkinsfile'
    public static final List<String> ALWAYS = ['Lint', 'Test', 'NiFi', 'Cluster', 'Observability', 'Slow', 'Build', 'Scan', 'Bill of materials']
    public static final List<String> TARGETS = ['lint', 'test', 'test-nifi', 'test-cluster', 'test-observability', 'test-slow', 'images', 'scan', 'sbom']

    @Before void before() { setUp() }

    @Test void everyStageIsReachedInItsOrder() {
        assertEquals('SUCCESS', run(FILE, [IMAGE_REGISTRY: 'registry.example.org']))
        assertEquals(ALWAYS + 'Publish', reached)
        assertEquals(TARGETS + 'push', made())
    }

    @Test void aFailureStopsTheRest() {
        TARGETS.eachWithIndex { target, i ->
            setUp(); reached.clear(); commands.clear()
            failing = ["make $target" as String]
            assertEquals(target, 'FAILURE', run(FILE, [IMAGE_REGISTRY: 'registry.example.org']))
            assertEquals(ALWAYS[0..i], reached)
            assertFalse(reached.contains('Publish'))
        }
    }

    @Test void reportsAreKeptOfTestsThatFail() {
        failing = ['make test']
        run(FILE, [IMAGE_REGISTRY: ''])
        assertTrue(called.containsAll(['junit', 'recordCoverage']))
    }

    @Test void onlyTheMainBranchPublishesAndOnlyWhereThereIsARegistry() {
        branchName = 'feature'
        assertEquals('SUCCESS', run(FILE, [IMAGE_REGISTRY: 'registry.example.org']))
        assertEquals(ALWAYS, reached)
        branchName = 'main'; setUp(); reached.clear()
        assertEquals('SUCCESS', run(FILE, [IMAGE_REGISTRY: '']))
        assertEquals(ALWAYS, reached)
        assertTrue(credentials.isEmpty())
    }

    @Test void noCommandHoldsASecret() {
        run(FILE, [IMAGE_REGISTRY: 'registry.example.org'])
        assertEquals(['image-registry'], credentials)
        assertTrue(commands.findAll { it.contains(SECRET) }.isEmpty())
        commands.findAll { it.contains('PASSWORD') }.each { assertTrue(it, it.startsWith('set +x')) }
    }

    @Test void theRegistryIsLeftAlsoWherePublishingFails() {
        failing = ['make push']
        assertEquals('FAILURE', run(FILE, [IMAGE_REGISTRY: 'registry.example.org']))
        assertTrue(commands.last().startsWith('docker logout'))
    }
}
